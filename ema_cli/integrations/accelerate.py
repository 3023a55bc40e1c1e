"""The averages of a sharded model (FSDP2) in a training with Accelerate; any other needs nothing from here.

In one process and in DDP, `accelerator.register_for_checkpointing(ema)` is all. But Accelerate saves what is registered
from the main process alone, and of a sharded model that is one part.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate import PartialState

from ema_cli.integrations.gathering import gather
from ema_cli.online.ema import EMA


class Gathered:
    """An EMA as Accelerate can save it: the tensors that are sharded are put together, and cut again when it loads.

    accelerator.register_for_checkpointing(Gathered(ema))
    """

    def __init__(self, ema: EMA) -> None:
        self.ema = ema

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state in the processes that save it. Every process calls this, as `save_state` does."""
        return gather(self.ema.state_dict(), keep=PartialState().is_local_main_process)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was called, with any number of processes."""
        self.ema.load_state_dict(state)
