"""Where each trainer keeps weights, clocks and averages in the object that it pickles: a row for each trainer.

Read it as a page; `layout.py` says what a row means, `places.py` applies it. What no place can say, a row names a
function for. Facts checked against files that the trainers themselves wrote, or against their sources.
"""

from __future__ import annotations

import re

from ema_cli.formats.trainers import averages, composer, wenet
from ema_cli.formats.trainers.layout import Layout
from ema_cli.law.time import Unit

EP, BA, SP, TOK = Unit.EPOCH, Unit.BATCH, Unit.SAMPLE, Unit.TOKEN
# What stands at the top beside a model that has no place of its own there (torchtitan, Megatron).
OTHERS = re.compile(
    r"(?:optim\w*|opt(?:_state)?|chained_\d+|lr_scheduler|scheduler|opt_param_scheduler|dataloader|train_state"
    r"|trainer_state|common_state|rng|rng_state|rerun_state_machine|(?:grad_)?scaler|ema|ema_optimizer|frozen_param_fragments)(?:[./]|$)"
)
OPTIMIZERS = re.compile(r"(?:optim\w*|opt(?:_state)?|lr_schedulers?|schedulers?)$")

_TIMESTAMP = "state/timestamp/Timestamp"
COMPOSER = Layout(
    "Composer",
    marks=("state/model",),
    model=("state/model",),
    # All four, zeros where the loader does not count.
    clocks={EP: (f"{_TIMESTAMP}/epoch",), BA: (f"{_TIMESTAMP}/batch",), SP: (f"{_TIMESTAMP}/sample",),
            TOK: (f"{_TIMESTAMP}/token",)},
    epochs="in progress",
    batch_in_epoch=f"{_TIMESTAMP}/batch_in_epoch",
    sets=composer.both_sets,
    complete=composer.add_inner_files,
)  # fmt: skip
PLAIN = Layout(
    None,  # a training loop of one's own, and whatever is not below
    marks=(),
    model=("model", "state_dict", "model_state_dict", "module"),  # or the dict itself
    clocks={
        BA: ("global_step", "num_updates", "global_steps", "iter_num", "iteration", "batch_idx_train", "step"),
        EP: ("epoch",),
    },
    epochs="unknown",
    beside=("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "model_avg", "ema"),
    clocks_beside=wenet.clocks_beside,
)
LAYOUTS = (
    COMPOSER,
    Layout(
        "Lightning",
        marks=("state_dict", "pytorch-lightning_version"),
        model=("state_dict",),
        clocks={BA: ("global_step",), EP: ("epoch",)},
        epochs="from 0",
        unfinished="loops/fit_loop/epoch_loop.batch_progress/is_last_batch",
        raw="current_model_state",  # there where its WeightAveraging put the averages into state_dict
        averages_counter="averaging_state",
    ),
    Layout(
        "Lightning",  # with DeepSpeed, which has the weights under a name of its own
        marks=("module", "pytorch-lightning_version"),
        model=("module",),
        clocks={BA: ("global_step",), EP: ("epoch",)},
        epochs="from 0",
        unfinished="loops/fit_loop/epoch_loop.batch_progress/is_last_batch",
    ),
    Layout(
        "MMEngine",
        marks=("state_dict", "meta", "message_hub"),
        model=("state_dict",),
        clocks={BA: ("meta/iter",), EP: ("meta/epoch",)},
        raw="ema_state_dict",  # its EMAHook swaps the two when it saves
        raw_prefix="module.",
    ),
    Layout(
        "mmcv",  # 1.x, before MMEngine
        marks=("state_dict", "meta/iter"),
        model=("state_dict",),
        clocks={BA: ("meta/iter",), EP: ("meta/epoch",)},
    ),
    Layout(
        "timm",
        marks=("state_dict", "arch", "version"),
        model=("state_dict",),
        clocks={EP: ("epoch",)},
        epochs="from 0",
        beside=("state_dict_ema",),
    ),
    Layout(
        "fairseq",
        marks=("model", "optimizer_history"),
        model=("model",),
        clocks={BA: ("optimizer_history/-1/num_updates",), EP: ("extra_state/train_iterator/epoch",)},
        epochs="next",
        beside=("extra_state/ema",),
    ),
    Layout(
        "litgpt",
        marks=("model", "step_count"),
        model=("model",),
        clocks={BA: ("step_count",)},  # its iter_num counts micro-batches
    ),
    Layout(
        "nanoGPT",
        marks=("model", "model_args", "iter_num"),
        model=("model",),
        clocks={BA: ("iter_num",)},
    ),
    Layout(
        "DeepSpeed",
        marks=("module", "global_steps"),
        model=("module",),
        clocks={BA: ("global_steps",), SP: ("global_samples",)},
    ),
    Layout(
        "OpenNMT-py",
        marks=("model", "generator", "opt"),
        model=("model",),
        clocks={},  # its training_step is of the step that comes next; the name has the one that is done
        joined={"generator": "generator."},
        averaged_if=averages.opennmt_average,
    ),
    Layout(
        "icefall",
        marks=("model", "batch_idx_train"),
        model=("model",),
        clocks={BA: ("batch_idx_train",)},  # the epoch is in the name, from 1
        beside=("model_avg", "model_ema"),
    ),
    Layout(
        "Ultralytics",
        marks=("model", "ema", "train_args"),
        model=("ema", "model"),  # the model is None until the end, and the average then
        clocks={EP: ("epoch",)},
        epochs="from 0",
        only_averages=True,
        note="without --like-input the average is a state dict for model.load_state_dict(), which YOLO() does not load",
    ),
    Layout(
        "YOLO",  # YOLOv5 and its like, 6, 7 and 9; ended trainings have None for the last two and the epoch -1
        marks=("model", "ema", "updates"),
        model=("model",),
        clocks={EP: ("epoch",)},
        epochs="from 0",
        beside=("ema",),
        averaged_if=averages.stripped_yolo,
    ),
    Layout(
        "ignite",  # what is beside the trainer's state is called as the user calls it
        marks=("trainer/iteration", "trainer/epoch_length"),
        model=(*PLAIN.model, "net"),
        clocks={BA: ("trainer/iteration",)},
        epoch_length="trainer/epoch_length",
        beside=PLAIN.beside,
    ),
    Layout(
        "MONAI",
        marks=("net", "opt"),
        model=("net",),
        clocks={},  # in its names
    ),
    Layout(
        "rsl_rl",
        marks=("model_state_dict", "iter", "infos"),
        model=("model_state_dict",),
        clocks={BA: ("iter",)},  # iterations, each of several optimizer steps
    ),
    Layout(
        "rl_games",  # which Isaac Lab trains with, as with rsl_rl
        marks=("model", "epoch", "frame"),
        model=("model",),
        clocks={EP: ("epoch",), SP: ("frame",)},
    ),
    Layout(
        "stable-baselines3",  # what it has as JSON, and its policy
        marks=("policy", "num_timesteps"),
        model=("policy",),
        clocks={SP: ("num_timesteps",)},  # steps of the environments; _n_updates counts otherwise in each algorithm
    ),
    Layout(
        "MACE",  # its epochs are in the names, from 0
        marks=("model/atomic_numbers", "model/r_max", "optimizer", "lr_scheduler"),
        model=("model",),
        clocks={},
        note="where MACE averaged while it trained (its option ema), these are the averages, which nothing shows",
    ),
    Layout(
        "YOLOX",
        marks=("model", "start_epoch", "best_ap"),
        model=("model",),
        clocks={EP: ("start_epoch",)},
        averaged_if=averages.yolox_average,
        surely_averaged=False,
    ),
    PLAIN,
)
