"""Where each trainer keeps weights, clocks and averages, and how it names its files. Data only; read it as a page.

Facts checked against files that the trainers themselves wrote, or against their sources. The code that applies the
tables is in `places.py` (what a file holds) and `names.py` (what it is called).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ema_cli.law.time import Unit

EP, BA, SP, TOK = Unit.EPOCH, Unit.BATCH, Unit.SAMPLE, Unit.TOKEN

# ---- What one pickled file holds. A slash descends, -1 is the last of a list. ----


@dataclass(frozen=True, slots=True)
class Layout:
    """What one trainer saves, recognised by `marks`, all of which are there.

    Clocks are looked up in `clocks`. Epochs count completed ones; a trainer may write that, or the number from 0 of the
    one that was just completed ("from 0"), or the number from 1 of the one that comes next ("next"); "in progress" is
    from 0 and not yet complete, "unknown" is 0 or 1 as the whole run tells. `unfinished` is a place that holds False
    where the epoch was not complete.

    Averages lie `beside` the raw weights; or they took their place, and the raw ones are at `raw`, under names that
    begin with `raw_prefix`. `averaged_if` is a place that holds a number other than 0 where the trainer saved its
    averages as the model; `only_averages`: it saves no raw weights at all. `joined` are further state dicts of the
    model, with the prefix of their names in it.
    """

    trainer: str | None
    marks: tuple[str, ...]
    weights: tuple[str, ...]
    clocks: Mapping[Unit, tuple[str, ...]]
    epochs: Literal["completed", "from 0", "next", "in progress", "unknown"] = "completed"
    unfinished: str | None = None
    beside: tuple[str, ...] = ()
    raw: str | None = None
    raw_prefix: str = ""
    joined: Mapping[str, str] = field(default_factory=dict)
    averaged_if: str | None = None
    only_averages: bool = False


_TIMESTAMP = "state/timestamp/Timestamp"
COMPOSER = Layout(
    "Composer",
    marks=("state/model",),
    weights=("state/model",),
    # All four, zeros where the loader does not count. With its EMA on, it swaps: see `places.py`.
    clocks={EP: (f"{_TIMESTAMP}/epoch",), BA: (f"{_TIMESTAMP}/batch",), SP: (f"{_TIMESTAMP}/sample",),
            TOK: (f"{_TIMESTAMP}/token",)},
    epochs="in progress",
)  # fmt: skip
PLAIN = Layout(
    None,  # a training loop of one's own, and whatever is not below
    marks=(),
    weights=("model", "state_dict", "model_state_dict", "module"),  # or the dict itself
    clocks={
        BA: ("global_step", "num_updates", "global_steps", "iter_num", "iteration", "batch_idx_train", "step"),
        EP: ("epoch",),
    },
    epochs="unknown",
    beside=("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "model_avg", "ema"),
)
LAYOUTS = (
    COMPOSER,
    Layout(
        "Lightning",
        marks=("state_dict", "pytorch-lightning_version"),
        weights=("state_dict",),
        clocks={BA: ("global_step",), EP: ("epoch",)},
        epochs="from 0",
        unfinished="loops/fit_loop/epoch_loop.batch_progress/is_last_batch",
        raw="current_model_state",  # there where its WeightAveraging put the averages into state_dict
    ),
    Layout(
        "Lightning",  # with DeepSpeed, which has the weights under a name of its own
        marks=("module", "pytorch-lightning_version"),
        weights=("module",),
        clocks={BA: ("global_step",), EP: ("epoch",)},
        epochs="from 0",
        unfinished="loops/fit_loop/epoch_loop.batch_progress/is_last_batch",
    ),
    Layout(
        "MMEngine",
        marks=("state_dict", "meta", "message_hub"),
        weights=("state_dict",),
        clocks={BA: ("meta/iter",), EP: ("meta/epoch",)},
        raw="ema_state_dict",  # its EMAHook swaps the two when it saves
        raw_prefix="module.",
    ),
    Layout(
        "timm",
        marks=("state_dict", "arch", "version"),
        weights=("state_dict",),
        clocks={EP: ("epoch",)},
        epochs="from 0",
        beside=("state_dict_ema",),
    ),
    Layout(
        "fairseq",
        marks=("model", "optimizer_history"),
        weights=("model",),
        clocks={BA: ("optimizer_history/-1/num_updates",), EP: ("extra_state/train_iterator/epoch",)},
        epochs="next",
        beside=("extra_state/ema",),
    ),
    Layout(
        "litgpt",
        marks=("model", "step_count"),
        weights=("model",),
        clocks={BA: ("step_count",)},  # its iter_num counts micro-batches
    ),
    Layout(
        "nanoGPT",
        marks=("model", "model_args", "iter_num"),
        weights=("model",),
        clocks={BA: ("iter_num",)},
    ),
    Layout(
        "DeepSpeed",
        marks=("module", "global_steps"),
        weights=("module",),
        clocks={BA: ("global_steps",), SP: ("global_samples",)},
    ),
    Layout(
        "OpenNMT-py",
        marks=("model", "generator", "opt"),
        weights=("model",),
        clocks={},  # its training_step is of the step that comes next; the name has the one that is done
        joined={"generator": "generator."},
        averaged_if="opt/average_decay",
    ),
    Layout(
        "icefall",
        marks=("model", "batch_idx_train"),
        weights=("model",),
        clocks={BA: ("batch_idx_train",)},  # the epoch is in the name, from 1
        beside=("model_avg", "model_ema"),
    ),
    Layout(
        "Ultralytics",
        marks=("model", "ema", "train_args"),
        weights=("ema", "model"),  # the model is None until the end, and the average then
        clocks={EP: ("epoch",)},
        epochs="from 0",
        only_averages=True,
    ),
    PLAIN,
)

EXTRA_STATE = "_extra_state"  # the name under which a module keeps what only its own code can read

# ---- Folders ----

# What a folder calls its weights when `from_pretrained` loads it; .safetensors or .bin, whole or with an index.
BASES: Mapping[str, str] = {  # what it is called as safetensors, and as .bin
    "model": "pytorch_model",
    "diffusion_pytorch_model": "diffusion_pytorch_model",
    "adapter_model": "adapter_model",
    "pytorch_lora_weights": "pytorch_lora_weights",
}
ADAPTERS = ("adapter_model", "pytorch_lora_weights")
# Parts of a Diffusers pipeline, each in a folder of its name; its averages are in NAME_ema.
COMPONENTS = (
    "unet", "transformer", "transformer_2", "controlnet", "prior", "vae", "text_encoder", "text_encoder_2",
    "text_encoder_3", "image_encoder", "decoder",
)  # fmt: skip
MODULES = "modules.json"  # of sentence-transformers: which folders hold the parts after the transformer
TRAINER_STATE = "trainer_state.json"  # of the Hugging Face Trainer, written after the weights
# Where the torch.distributed.checkpoint folder lies in a checkpoint: Accelerate, OLMo-core, NeMo, Lightning.
DCP_FOLDERS = ("pytorch_model_fsdp_*", "model_and_optim", "weights")
DEEPSPEED_TAG = re.compile(r"^global_step(\d+)$")
# What a trainer writes when a checkpoint is whole, beside it or around it.
LATEST = ("latest", "latest_checkpointed_iteration.txt")  # the newest one: DeepSpeed, Megatron
UNFINISHED_MARK = "-unfinished"  # NeMo's, after the folder's name, while it is written
DCP_METADATA = ".metadata"
DCP_META = "meta.pt"  # in which Lightning keeps what is not a tensor
OLMO_MARK = ".metadata.json"
MEGATRON_MARK, MEGATRON_COMMON = "metadata.json", "common.pt"
# wenet's, beside each .pt: the epoch from 0 that was just completed, and the step, of which accum_grad make one batch.
WENET_SIDECAR = ".yaml"
MEGATRON_PART = re.compile(r"^mp_rank_\d+")  # the folder of one rank, in Megatron's older format
# What stands at the top of a torch.distributed.checkpoint folder beside the model, where the model has no place of its
# own (torchtitan, Megatron).
# In a nested dict; and in names that were flattened before, which could be a model's own names otherwise.
DCP_OTHERS = re.compile(
    r"(?:optim\w*|opt|chained_\d+|lr_scheduler|scheduler|opt_param_scheduler|dataloader|train_state"
    r"|trainer_state|rng|rng_state|rerun_state_machine|(?:grad_)?scaler|ema|ema_optimizer)(?:[./]|$)"
)
DCP_FLAT_OTHERS = re.compile(
    r"(?:optimizer|optim|chained_\d+|lr_scheduler|opt_param_scheduler|dataloader|train_state|rng_state"
    r"|rerun_state_machine_state)[./]|(?:rng|rng_state)$"
)
# torchtitan's averages, of parameters and not always of buffers: ema.state.NAME.ema_params
DCP_AVERAGES = re.compile(r"^(?:ema|ema_optimizer)\.state\.(.+)\.ema_params$")
DCP_CLOCKS: Mapping[Unit, tuple[str, ...]] = {
    EP: ("epoch", f"{_TIMESTAMP.replace('/', '.')}.epoch"),
    BA: ("train_state.step", "step", "app.step", "global_step", f"{_TIMESTAMP.replace('/', '.')}.batch"),
    SP: (f"{_TIMESTAMP.replace('/', '.')}.sample",),
    TOK: ("train_state.ntokens_seen", f"{_TIMESTAMP.replace('/', '.')}.token"),
}

# ---- Names ----

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar", ".tgz")
COMPRESSED_SUFFIXES = (".zst", ".gz", ".lz4", ".bz2", ".xz", ".lzma", ".lzo")
NOT_WEIGHTS = (
    "optimizer*", "*optim_states*", "scheduler*", "rng_state*", "random_states*", "training_args*",
    "scaler.pt", "sampler*", "dataloader*", "trainer_state*", "meta.pt", "common.pt",
    "bad-model*",
)  # fmt: skip
UNFINISHED = ("tmp-*", "*.tmp", "*-tmp", "*.part", "*.partial", "*.incomplete", "*.orbax-checkpoint-tmp*")
# One part of a model: fairseq's names of shards, Accelerate's of FSDP's local state.
PARTS = re.compile(r"-rank-\d+\.pt$|-shard\d+\.pt$|_fsdp_rank\d+\.bin$|\.distcp$")
COPIES = re.compile(r"(?:^|[-_.])(?:last|latest|best|final)(?:[-_.]|$)|model_best", re.IGNORECASE)
RECOVERY = re.compile(r"^recovery-\d+-\d+\.")  # timm's, in the middle of an epoch
AVERAGES_FOLDER = re.compile(r"(?:^|[-_])ema$", re.IGNORECASE)
# Averages as espnet (valid.acc.ave_10best.pth), wenet (avg_10.pt), NeMo (...-EMA.ckpt) and others name them. Not a
# metric (val_ema_loss=0.1), and not our own outputs, which say themselves what they are.
_OWN = r"-(?:\d[\d.e]*|inf)(?:ba|ep|sp|tok)"
AVERAGES_FILE = re.compile(
    rf"(?:^|[-_.])(?:(?:ema|swa)(?![a-z]|[-_a-z]*=|{_OWN})"
    r"|(?:ave|avg|averaged?)(?:[-_]?(?:\d+(?:best)?|model|weights))?(?:\.till\d+epoch)?(?:\.[a-z]+)*$)",
    re.IGNORECASE,
)
SHARD = re.compile(r"-\d{5,}-of-\d{5,}\.(?:safetensors|bin)$")
OWN_MARK = "ema_cli"  # at the top of what our callback for Lightning saved with its average as the model
# What wrappers put into names: torch.compile, FSDP and activation checkpointing anywhere; DDP around the whole model.
PREFIXES = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
OUTER_PREFIXES = ("module.",)

_WORD = r"(?:^|[^a-z])"  # "step" in "step-100" and "global_step100", not in "footstep-100"
_AFTER = r"(?![\d.]*[kmbt](?![a-z]))"  # not the 4 of "tokens4B", nor of "step4.5k"
_COUNT = rf"[-_=]?(\d+){_AFTER}"
_DECIMAL = rf"[-_=]?(\d+(?:\.\d+)?){_AFTER}"
COMPOSER_NAME = re.compile(r"ep\d+-ba\d+", re.IGNORECASE)
NAME_CLOCKS = tuple(
    (unit, re.compile(pattern, re.IGNORECASE))
    for unit, pattern in (
        (EP, rf"{_WORD}ep(?:och)?{_DECIMAL}"),
        (EP, r"^(\d+)epoch\."),  # espnet
        (BA, rf"{_WORD}(?:ba(?:tch)?|steps?|iter(?:ation)?s?){_COUNT}"),
        (BA, r"^checkpoint-(\d+)$"),  # a folder of the Hugging Face Trainer
        (SP, rf"{_WORD}(?:sp|samples?){_COUNT}"),
        (TOK, rf"{_WORD}(?:tok|tokens?){_COUNT}"),
    )
)
