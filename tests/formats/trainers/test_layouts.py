"""Each row of the table of layouts: recognised by its marks, its weights, its clocks, its averages."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ema_cli.errors import CheckpointError, NoSuchWeights
from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.trainers.choice import AVERAGED_AGAIN
from ema_cli.formats.trainers.layouts import LAYOUTS, PLAIN
from ema_cli.formats.trainers.places import progress_of
from ema_cli.law.time import Unit
from tests.formats.trainers.state import EMA, OTHER, RAW, holds, lightning, opened, plain_clocks, refusal

TIMESTAMP = {"Timestamp": {"epoch": 2, "batch": 50, "sample": 200, "token": 9000, "batch_in_epoch": 10, "iteration": 0}}
GENERATOR = {"weight": torch.full((2,), 5.0)}
NAMESPACE = argparse.Namespace(lr=0.1)
MACE = {**RAW, "atomic_numbers": torch.tensor([1]), "r_max": torch.tensor(3.0)}


@dataclass
class Row:
    """What a trainer saves around its weights, and what is made of that."""

    saved: dict[str, Any]
    place: str
    clocks: dict[str, float]
    trainer: str | None
    origin_unknown: bool = False
    weights: dict[str, torch.Tensor] = field(default_factory=lambda: RAW)


ROWS: dict[str, Row] = {
    "Composer": Row(
        {"state": {"model": RAW, "timestamp": TIMESTAMP, "optimizers": {}, "rank_zero_seed": 1}, "rng": []},
        "state/model",
        {"ep": 2, "ba": 50, "sp": 200, "tok": 9000},
        "Composer",
    ),
    "Composer, weights only": Row({"state": {"model": RAW, "integrations": {}}}, "state/model", {}, "Composer"),
    "Lightning": Row(lightning(), "state_dict", {"ba": 30, "ep": 3}, "Lightning"),
    "Lightning, unfinished": Row(lightning(last=False), "state_dict", {"ba": 30, "ep": 2}, "Lightning"),
    "mmcv": Row(
        {"meta": {"epoch": 3, "iter": 300, "mmcv_version": "1.7.1"}, "state_dict": RAW, "optimizer": {}},
        "state_dict",
        {"ep": 3, "ba": 300},
        "mmcv",
    ),
    "ignite": Row(
        {"model": RAW, "optimizer": {}, "trainer": {"epoch_length": 20, "iteration": 50, "max_epochs": 3}},
        "model",
        {"ba": 50, "ep": 2.5},
        "ignite",
    ),
    "MONAI": Row({"net": RAW, "opt": {"state": {}}}, "net", {}, "MONAI"),
    "stable-baselines3": Row(
        {"num_timesteps": 128, "_n_updates": 10, "policy": RAW}, "policy", {"sp": 128}, "stable-baselines3"
    ),
    "rsl_rl": Row(
        {"model_state_dict": RAW, "optimizer_state_dict": {}, "iter": 50, "infos": None},
        "model_state_dict",
        {"ba": 50},
        "rsl_rl",
    ),
    "rl_games": Row(
        {"model": RAW, "epoch": 7, "frame": 14000, "optimizer": {}, "last_mean_rewards": 1.0, "env_state": None},
        "model",
        {"ep": 7, "sp": 14000},
        "rl_games",
    ),
    "MACE": Row(
        {"model": MACE, "optimizer": {"state": {}, "param_groups": []}, "lr_scheduler": {"gamma": 0.9}},
        "model",
        {},
        "MACE",
        weights=MACE,
    ),
    "timm": Row(
        {"epoch": 4, "arch": "resnet", "state_dict": RAW, "version": 2, "args": NAMESPACE, "metric": 1.0},
        "state_dict",
        {"ep": 5},
        "timm",
    ),
    "fairseq, end of an epoch": Row(
        {
            "model": RAW,
            "optimizer_history": [{"num_updates": 1}, {"num_updates": 40}],
            "extra_state": {"train_iterator": {"epoch": 4}},
            "args": None,
        },
        "model",
        {"ba": 40, "ep": 3},
        "fairseq",
    ),
    "fairseq, first epoch": Row(
        {"model": RAW, "optimizer_history": [], "extra_state": {"train_iterator": {"epoch": 0}}, "cfg": {}},
        "model",
        {"ep": 0},
        "fairseq",
    ),
    "litgpt": Row({"model": RAW, "iter_num": 800, "step_count": 100, "optimizer": {}}, "model", {"ba": 100}, "litgpt"),
    "nanoGPT": Row(
        {"model": RAW, "model_args": {"n_layer": 2}, "iter_num": 2000, "best_val_loss": torch.tensor(1.5)},
        "model",
        {"ba": 2000},
        "nanoGPT",
    ),
    "DeepSpeed": Row(
        {"module": RAW, "global_steps": 5, "global_samples": 80, "optimizer": None, "dp_world_size": 2},
        "module",
        {"ba": 5, "sp": 80},
        "DeepSpeed",
    ),
    "OpenNMT-py": Row(
        {"model": RAW, "generator": None, "opt": argparse.Namespace(average_decay=0), "optim": {"training_step": 9}},
        "model",
        {},
        "OpenNMT-py",
    ),
    "icefall": Row(
        {"model": RAW, "batch_idx_train": 8000, "optimizer": {}, "sampler": {"epoch": 2}, "grad_scaler": {}},
        "model",
        {"ba": 8000},
        "icefall",
    ),
    "Ultralytics": Row(
        {"epoch": 7, "model": RAW, "ema": None, "train_args": {}, "updates": 3}, "model", {"ep": 8}, "Ultralytics"
    ),
    "YOLO": Row(
        {"epoch": 7, "best_fitness": 0.5, "model": RAW, "ema": None, "updates": 3, "optimizer": {}},
        "model",
        {"ep": 8},
        "YOLO",
    ),
    "YOLOX": Row({"start_epoch": 8, "model": RAW, "best_ap": 0.5, "curr_ap": 0.5}, "model", {"ep": 8}, "YOLOX"),
    "MMEngine": Row(
        {"meta": {"epoch": 3, "iter": 300}, "state_dict": RAW, "message_hub": {}, "optimizer": {}},
        "state_dict",
        {"ba": 300, "ep": 3},
        "MMEngine",
    ),
    "a loop of one's own": Row({"model": RAW, "step": 3, "epoch": 1}, "model", {"ba": 3, "ep": 1}, None, True),
}  # fmt: skip


def test_every_row_is_here() -> None:
    """No trainer in the table is without a test."""
    assert {layout.trainer for layout in LAYOUTS} == {row.trainer for row in ROWS.values()}
    assert LAYOUTS[-1] is PLAIN  # which fits everything


@pytest.mark.parametrize("label", ROWS)
def test_weights_and_clocks(label: str, tmp_path: Path) -> None:
    """What a trainer saves is known as its own; weights come from its place, clocks count completed epochs."""
    row = ROWS[label]
    checkpoint = opened(tmp_path, row.saved)
    assert holds(checkpoint, row.weights)
    assert checkpoint.trainer == row.trainer
    assert plain_clocks(checkpoint.progress) == row.clocks
    assert checkpoint.progress.epoch_origin_unknown is row.origin_unknown


@pytest.mark.parametrize("label", ROWS)
def test_the_clock_is_kept_with_a_key(label: str, tmp_path: Path) -> None:
    """Tensors elsewhere in the file have the clock that the trainer wrote, all the same."""
    checkpoint = opened(tmp_path, {**ROWS[label].saved, "elsewhere": OTHER}, key="elsewhere")
    assert holds(checkpoint, OTHER)
    assert plain_clocks(checkpoint.progress) == ROWS[label].clocks


def test_counters_that_are_not_kept_are_no_clocks(tmp_path: Path) -> None:
    """Composer leaves samples and tokens at 0 where its loader does not count; a batch 0 is one."""
    stamp = {"Timestamp": {"epoch": 0, "batch": 0, "sample": 0, "token": 0, "batch_in_epoch": 0}}
    progress = opened(tmp_path, {"state": {"model": RAW, "timestamp": stamp}}).progress
    assert plain_clocks(progress) == {"ep": 0, "ba": 0}
    assert progress.batch_in_epoch == 0


@pytest.mark.parametrize("epoch", [0, 3])
def test_an_epoch_of_a_loop_begins_nobody_knows_where(epoch: int, tmp_path: Path) -> None:
    """Whether 0 or 1 was the first, one file cannot tell; a fraction of an epoch can."""
    assert opened(tmp_path, {"model": RAW, "epoch": epoch}).progress.epoch_origin_unknown
    assert not opened(tmp_path, {"model": RAW, "epoch": epoch + 0.5}).progress.epoch_origin_unknown


def test_lightnings_counters_without_weights() -> None:
    """The dict beside a sharded checkpoint of Lightning's has the clocks alone; Fabric's is a loop's own."""
    meta = lightning()
    del meta["state_dict"]
    assert plain_clocks(progress_of(meta)) == {"ba": 30, "ep": 3}
    assert plain_clocks(progress_of({"step": 10, "epoch": 1})) == {"ba": 10, "ep": 1}


# Where trainers keep averages beside the raw weights.
BESIDE = [
    ("timm", "state_dict_ema"), ("icefall", "model_avg"), ("icefall", "model_ema"),
    *(("a loop of one's own", place) for place in PLAIN.beside),
]  # fmt: skip


@pytest.mark.parametrize(("label", "place"), BESIDE)
def test_averages_beside_the_weights(label: str, place: str, tmp_path: Path) -> None:
    """Raw weights are taken, and the averages named; on request it is the other way round, said too."""
    saved = {**ROWS[label].saved, place: EMA}
    plain = opened(tmp_path, saved)
    assert holds(plain, RAW)
    assert (plain.averaged, plain.notes) == (
        None,
        (f"raw weights taken; averages lie beside them, in '{place}' (--weights ema)",),
    )
    chosen = opened(tmp_path, saved, weights="ema")
    assert holds(chosen, EMA)
    assert (chosen.averaged, chosen.warnings) == (None, (AVERAGED_AGAIN,))
    assert plain_clocks(chosen.progress) == ROWS[label].clocks


@pytest.mark.parametrize("place", PLAIN.beside)
def test_nothing_but_averages(place: str, tmp_path: Path) -> None:
    """A file that holds averages alone says so; they are never taken for raw weights."""
    saved = {place: EMA, "step": 3}
    found = opened(tmp_path, saved)
    assert holds(found, EMA)
    assert found.averaged == f"it holds nothing but averages, in '{place}'"
    assert holds(opened(tmp_path, saved, weights="ema"), EMA)
    assert type(refusal(tmp_path, saved, weights="raw")) is NoSuchWeights


class Detector(nn.Module):
    """A model that Ultralytics pickles whole."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((2,), value).half())


def test_ultralytics_saves_averages_alone(tmp_path: Path) -> None:
    """Until the end the model is None, and `ema` a whole module of averages: refused, unless asked for."""
    saved = {"epoch": 7, "best_fitness": None, "model": None, "ema": Detector(2.0), "updates": 3, "train_args": {}}
    found = opened(tmp_path, saved)
    assert (found.trainer, plain_clocks(found.progress)) == ("Ultralytics", {"ep": 8})
    assert found.averaged == "it holds nothing but averages, in 'ema'"
    assert list(found.tensors.specs) == ["w"]
    chosen = opened(tmp_path, saved, weights="ema")
    (note,) = chosen.notes
    assert note.endswith("the average is a state dict for model.load_state_dict(), which YOLO() does not load")
    assert chosen.warnings == (AVERAGED_AGAIN,)
    assert type(refusal(tmp_path, saved, weights="raw")) is NoSuchWeights


def test_opennmts_generator_belongs_to_the_model(tmp_path: Path) -> None:
    """OpenNMT-py keeps the last layer apart: both are the model, under the names that it loads."""
    saved = {**ROWS["OpenNMT-py"].saved, "generator": GENERATOR}
    checkpoint = opened(tmp_path, saved)
    assert holds(checkpoint, {**RAW, "generator.weight": GENERATOR["weight"]})
    twice = {**saved, "model": {**RAW, "generator.weight": torch.ones(2)}}
    error = refusal(tmp_path, twice)
    assert "'generator.weight' is in 'generator' and in the model" in str(error)


def test_opennmts_moving_average(tmp_path: Path) -> None:
    """With average_decay on, OpenNMT-py saves its average as the model, and no raw weights."""
    saved = {**ROWS["OpenNMT-py"].saved, "opt": argparse.Namespace(average_decay=1e-4)}
    assert opened(tmp_path, saved).averaged == "OpenNMT-py saved its moving average as the model"
    assert opened(tmp_path, saved, weights="ema").averaged is None
    assert type(refusal(tmp_path, saved, weights="raw")) is NoSuchWeights


def test_extra_state_is_refused_in_each_place(tmp_path: Path) -> None:
    """What only a module's code can read, no tensor, is refused; on request it is left out, and that is said."""
    saved = {"model": {**RAW, "layer._extra_state": {"scale": torch.ones(2)}}, "step": 3}
    error = refusal(tmp_path, saved)
    assert type(error) is CheckpointError
    assert "'layer._extra_state' is no tensor" in str(error)
    assert error.hint == "leave it out of the average and of the output: copy='*_extra_state'"
    torch.save(saved, tmp_path / "a.pt")
    checkpoint = open_checkpoint(tmp_path / "a.pt", ReadOptions(copy=("*_extra_state",)))
    assert holds(checkpoint, RAW)
    assert checkpoint.notes == ("not tensors, left out: 'layer._extra_state'",)
    assert holds(opened(tmp_path, {"model": {**RAW, "layer._extra_state": None}}), RAW)


@pytest.mark.parametrize("unit", list(PLAIN.clocks))
def test_the_first_counter_in_the_table_is_taken(unit: Unit, tmp_path: Path) -> None:
    """Of several counters of one unit the first in the table is taken, whatever their order in the file."""
    for first, second in zip(PLAIN.clocks[unit], PLAIN.clocks[unit][1:], strict=False):
        assert opened(tmp_path, {second: 9, first: 4, "state_dict": RAW}).progress.clocks[unit].value == 4
