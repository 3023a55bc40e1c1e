"""What a name tells: the clock, whether there may be weights, whether it is done."""

from __future__ import annotations

import pytest

from ema_cli.formats.trainers import names
from ema_cli.formats.trainers.names import (
    AVERAGES_FILE,
    AVERAGES_FOLDER,
    AVERAGES_KEY,
    COPIES,
    PARTS,
    RECOVERY,
    is_unfinished_name,
    is_weights_name,
    may_hold_averages,
    name_clocks,
)
from tests.formats.trainers.state import plain_clocks

NAMES: dict[str, dict[str, float]] = {
    "ep1-ba50-rank0.pt": {"ep": 1, "ba": 50},
    "ep0-ba20-rank0.pt": {"ep": 0, "ba": 20},
    "epoch=3-step=400.ckpt": {"ep": 3, "ba": 400},
    "epoch=00-step=000020-train/loss=1.03.ckpt": {"ep": 0, "ba": 20},
    "epoch=3-step=400-v1.ckpt": {"ep": 3, "ba": 400},
    "epoch=12-best.ckpt": {"ep": 12},
    "epoch=3-val_loss=0.25.ckpt": {"ep": 3},
    "Epoch_3.pth.tar": {"ep": 3},
    "checkpoint-500": {"ba": 500},
    "checkpoint-500/model.safetensors": {"ba": 500},
    "runs/step-7/checkpoint-500/pytorch_model.bin": {"ba": 500},
    "step-100": {"ba": 100},
    "step-100.pt": {"ba": 100},
    "step_100/model.pt": {"ba": 100},
    "model_step100best.pt": {"ba": 100},
    "steps-200.bin": {"ba": 200},
    "global_step100": {"ba": 100},
    "global_step100/mp_rank_00_model_states.pt": {"ba": 100},
    "iter_0001000": {"ba": 1000},
    "iteration-7.pt": {"ba": 7},
    "gpt2-124M-step-300.pt": {"ba": 300},
    "step-100-tokens4B": {"ba": 100},
    "step=400-batch_size=32.ckpt": {"ba": 400},
    "tokens-4000": {"tok": 4000},
    "samples_64.pt": {"sp": 64},
    "10epoch.pth": {"ep": 10},  # espnet
    "exp/asr_sp_bpe5000/10epoch.pth": {"ep": 10},
    "epoch_10.pt": {"ep": 10},  # wenet
    "step_4000.pt": {"ba": 4000},
    "epoch-30.pt": {"ep": 30},  # icefall
    "model_step_1000.pt": {"ba": 1000},  # OpenNMT-py
    "iter-000500-ckpt.pth": {"ba": 500},
    "step-00000500/lit_model.pth": {"ba": 500},
    "megatron_gpt--val_loss=2.1-step=500-consumed_samples=4000.0-last.ckpt": {"ba": 500, "sp": 4000},
    "epoch=1.5.pt": {"ep": 1.5},
    "CHECKPOINT-7": {"ba": 7},
}
NO_CLOCKS = """tokens4B tokens-4.5b.pt step-10k step4.5k.pt footstep-100 deep3.pt batch-size-32 llama-7b.safetensors
model-00001-of-00002.safetensors model.pt last.ckpt step- checkpoint_3 checkpoint-8000.pt checkpoint_3_4000.pt 10.pt
asr_bpe5000 prestep100 sepoch7 valid.acc.ave_10best.pth 3epochs.pth stepx5 epochs/model.pt"""
NAMES |= {name: {} for name in NO_CLOCKS.split()}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_clocks_come_from_the_innermost_part_of_a_name(name: str) -> None:
    """The innermost part of a name that counts gives the clocks; sizes of models and of data are no clocks."""
    progress = name_clocks(name)
    assert plain_clocks(progress) == NAMES[name]
    assert {clock.source for clock in progress.clocks.values()} <= {"name"}
    composers = name.startswith(("ep1-ba", "ep0-ba"))
    assert progress.epoch_origin_unknown is ("ep" in NAMES[name] and not composers)


@pytest.mark.parametrize(
    ("names", "weights", "unfinished"),
    [
        ("a.pt b.PTH c.bin d.ckpt e.tar e.pth.tar f.safetensors", True, False),
        ("optimizer.pt optimizer_0.bin scheduler.pt rng_state.pth rng_state_3.pth training_args.bin", False, False),
        ("random_states_0.pkl scaler.pt trainer_state.json config.json log.txt x_optim_states.pt", False, False),
        ("tmp-checkpoint-5 a.pt.tmp x-tmp a.bin.part a.pt.incomplete .a.pt", None, True),
    ],
)
def test_names_of_weights_and_of_other_files(names: str, weights: bool | None, unfinished: bool) -> None:
    """What trainers write beside their weights, and what they have not finished, is known by its name."""
    for name in names.split():
        assert weights is None or is_weights_name(name) is weights, name
        assert is_unfinished_name(name) is unfinished, name


def test_a_name_without_weights_is_no_checkpoint() -> None:
    """Compressed files are weights by name, so that they are refused and not overlooked; logs and the like are not."""
    for name in ("ep1-ba5-rank0.pt.zst", "a.pt.gz", "a.ckpt.lz4", "A.PT.XZ"):
        assert is_weights_name(name), name
    for name in (
        "optimizer.pt.gz",
        "meta.pt",
        "common.pt",
        "bad-model-first-warning-0.pt",
        "sampler.bin",
        "a.zst",
        "pt",
    ):
        assert not is_weights_name(name), name


# A pattern of the table, names it is for, and names that only look so.
PATTERNS = {
    "averages in a file": (
        AVERAGES_FILE,
        "valid.acc.ave_10best.pth valid.acc.ave.pth avg_10.pt avg10.pt x=1-EMA.ckpt model_ema.pt model.swa.pt ema.pt "
        "averaged.safetensors valid.loss.ave_3best.till50epoch.pth step-100-ema.pt",
        "schema.pt wave.pt avgpool.pt ave_dropout_layer.pt leave.pt ema-50ba.safetensors 10epoch.pth swag.pt",
    ),
    "averages in a folder": (AVERAGES_FOLDER, "ema unet_ema model-ema EMA", "schema emanuel ema-50ba ema_x cinema"),
    "copies": (
        COPIES,
        "last.ckpt latest-rank0.pt model_best.pth.tar best_model.pt checkpoint_last.pt final.pt x-final-y.pt LAST.pt",
        "ballast.pt bestiary-5.pt finals.pt lasting.pt",
    ),
    "recovery": (RECOVERY, "recovery-3-50.pth.tar", "recovery.pt recovery-3.pth.tar my-recovery-3-50.pth"),
    "parts": (
        PARTS,
        "checkpoint3-rank-0.pt checkpoint_1_2-shard0.pt pytorch_model_fsdp_rank0.bin __0_0.distcp",
        "ep1-ba50-rank0.pt checkpoint-3.pt model_shard.pt rank-0.pth",
    ),
}


@pytest.mark.parametrize("label", PATTERNS)
def test_names_of_averages_copies_and_parts(label: str) -> None:
    """Each pattern knows the names that trainers use, and leaves alone those that only contain their letters."""
    pattern, meant, others = PATTERNS[label]
    assert [name for name in meant.split() if not pattern.search(name)] == []
    assert [name for name in others.split() if pattern.search(name)] == []


def test_no_name_of_averages_is_missed_by_the_quick_look():
    """Whatever the pattern knows has one of the words in it that are looked for first, in any case."""
    words = ["ema", "EMA", "Ema", "swa", "\u017fwa", "avg", "Avg", "average", "Averaged", "shadow", "pol\u212aak"]
    around = (("", ""), ("model.", "2.w"), ("model", "W"), ("a_", "-b"), ("exp_", ""), ("x", "y"), ("k\n", "\n"))
    names = [f"{before}{word}{behind}" for word in words for before, behind in around]
    assert [may_hold_averages([name]) for name in names] == [bool(AVERAGES_KEY.search(name)) for name in names]
    assert may_hold_averages([1, "model.weight", "model_ema.weight"])
    assert not may_hold_averages([1, "model.weight", None])


def test_no_clock_of_a_name_is_missed_by_the_quick_look():
    """Whatever a pattern of clocks finds has one of its words in it, in any case."""
    parts = [part for name in NAMES for part in name.split("/")]
    for part in [*parts, *map(str.upper, parts), "0004000_adapters.safetensors", "\u017ftep-10", "to\u212aen5"]:
        found = [pattern.findall(part) for _, _, pattern in names._CLOCKS]
        looked = [pattern.findall(part) for _, pattern in names._clocks_for(part)]
        assert [numbers for numbers in looked if numbers] == [numbers for numbers in found if numbers], part
