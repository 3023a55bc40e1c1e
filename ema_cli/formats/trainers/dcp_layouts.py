"""How each trainer's folders of torch.distributed.checkpoint are recognised, and where they keep clocks and averages.

Read it as a page; `formats/dcp` applies it. Names are the keys of the nested dict that was saved, joined with dots. The
model is at one of the places of `layouts.PLAIN`, or stands at the top, beside things that are known to be no model's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

from ema_cli.dataclass import dataclass
from ema_cli.formats.trainers import composer
from ema_cli.formats.trainers.folders import DCP_META
from ema_cli.law.time import Unit


@dataclass(frozen=True, slots=True)
class DcpLayout:
    """How one trainer's folder is recognised: by any of `tensors`, `items` and `file`.

    Attributes:
        tensors: the first keys in the name of some tensor.
        items: the first keys in the name of anything that is saved.
        file: a file beside the shards.
        averages_item: the beginning of the name of an item that records whether averages took the model's place.
        is_averaged: whether the value of such an item says so.
        averages_reason: how it is then known that these are averages.
    """

    trainer: str
    tensors: str | None = None
    items: str | None = None
    file: str | None = None
    averages_item: str | None = None
    is_averaged: Callable[[object], bool] = bool
    averages_reason: str = ""

    def matches(self, tensors: Collection[str], items: Collection[str], files: Collection[str]) -> bool:
        """Return whether this trainer saved a folder with tensors, other items and files of these names."""
        return (
            _any_begins(tensors, self.tensors)
            or _any_begins(tensors, self.items)
            or _any_begins(items, self.items)
            or self.file in files
        )


def _any_begins(names: Collection[str], beginning: str | None) -> bool:
    return beginning is not None and any(
        name == beginning or name.startswith((f"{beginning}.", f"{beginning}/")) for name in names
    )


_TIMESTAMP = "state.timestamp.Timestamp"
MEGATRON_STATE = "common_state"  # what Megatron-Core 0.19 stores with the shards, and older versions in common.pt
DCP_LAYOUTS = (
    DcpLayout(
        "Composer",
        tensors="state.model",
        items=f"{_TIMESTAMP}.batch",
        averages_item="state.algorithms",
        is_averaged=composer.is_ema_on,
        averages_reason=composer.EMA_WAS_ON,
    ),
    DcpLayout("Lightning", file=DCP_META),  # or its Fabric
    DcpLayout("torchtitan", items="train_state"),
    DcpLayout("Megatron", items=MEGATRON_STATE),
    DcpLayout("Megatron", items="checkpoint_version"),  # of its FSDP, fsdp_dtensor
)
DCP_CLOCKS: Mapping[Unit, tuple[str, ...]] = {
    Unit.EPOCH: ("epoch", f"{_TIMESTAMP}.epoch"),
    Unit.BATCH: (
        "train_state.step",
        "step",
        "app.step",
        "global_step",
        f"{_TIMESTAMP}.batch",
        f"{MEGATRON_STATE}.iteration",
        "iteration",
    ),
    Unit.SAMPLE: (
        f"{_TIMESTAMP}.sample",
        f"{MEGATRON_STATE}.args.consumed_train_samples",
        "args.consumed_train_samples",
    ),
    Unit.TOKEN: ("train_state.ntokens_seen", f"{_TIMESTAMP}.token"),
}
DCP_BATCH_IN_EPOCH = f"{_TIMESTAMP}.batch_in_epoch"
# torchtitan's averages, of parameters and not always of buffers: ema.state.NAME.ema_params
DCP_AVERAGES = re.compile(r"^(?:ema|ema_optimizer)\.state\.(.+)\.ema_params$")
# What stands beside the model in names that were flattened before they were saved. In a nested dict more is known to be
# something else (`layouts.OTHERS`): here such a name could be the model's own.
DCP_FLAT_OTHERS = re.compile(
    r"(?:optimizer|optim|chained_\d+|lr_scheduler|opt_param_scheduler|dataloader|train_state|rng_state"
    r"|rerun_state_machine_state)[./]|(?:rng|rng_state)$"
)
# What the model's names begin with where all was flattened, and no record says how it was nested.
DCP_FLATTENED = ("state.model.", "app.model.", "model.")
