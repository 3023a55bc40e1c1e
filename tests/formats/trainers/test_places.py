"""Tensors, averages and clocks in what was pickled: found in the places we know, or refused with the way to them."""

from __future__ import annotations

import datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ema_cli.errors import CheckpointError, NoSuchWeights, NoWeights
from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import Choice, ReadOptions
from ema_cli.formats.trainers.layouts import PLAIN
from ema_cli.law.time import Unit
from tests.conftest import COMPOSER
from tests.formats.trainers.state import EMA, OTHER, RAW, holds, lightning, opened, plain_clocks, refusal

AVERAGES_AGAIN = "these are averages, which are averaged again"


@pytest.mark.parametrize("place", PLAIN.model)
def test_plain_dicts(place: str, tmp_path: Path) -> None:
    """Tensors are found under each of the usual names; what stands beside them is left alone."""
    checkpoint = opened(tmp_path, {"optimizer": {"state": {0: {"m": torch.ones(2)}}}, place: RAW, "lr": 0.1})
    assert holds(checkpoint, RAW)
    assert (checkpoint.trainer, checkpoint.averaged, checkpoint.notes) == (None, None, ())


def test_a_bare_state_dict(tmp_path: Path) -> None:
    """A dict of tensors is the weights, a step among them, too; plain values are left out, and named if no clocks."""
    checkpoint = opened(tmp_path, {**RAW, "epoch": 3, "version": "1.0", "extra": None, "step": torch.tensor(40)})
    assert holds(checkpoint, {**RAW, "step": torch.tensor(40)})
    assert checkpoint.notes == ("not tensors, left out: 'version', 'extra'",)
    assert plain_clocks(checkpoint.progress) == {"ba": 40, "ep": 3}


@pytest.mark.slow
@pytest.mark.parametrize("key", [*PLAIN.clocks[Unit.BATCH], *PLAIN.clocks[Unit.EPOCH]])
@pytest.mark.parametrize("value", [7, 7.0, torch.tensor(7), torch.tensor([7], dtype=torch.int16)])
def test_a_clock_is_read_under_any_of_its_keys(key: str, value: Any, tmp_path: Path) -> None:
    """Every key under which trainers count is read, as a number or as a tensor of one integer."""
    progress = opened(tmp_path, {"model": RAW, key: value}).progress
    assert plain_clocks(progress) == {"ep" if key == "epoch" else "ba": 7}
    assert {clock.source for clock in progress.clocks.values()} == {"file"}
    assert progress.epoch_origin_unknown is (key == "epoch")


@pytest.mark.parametrize(
    "value", [-1, True, "7", None, float("nan"), float("inf"), [7], 10.0**30, torch.tensor(-7), torch.ones(2).long()]
)
def test_a_negative_or_endless_number_is_no_clock(value: Any, tmp_path: Path) -> None:
    """A negative, boolean, textual or endless number under a clock's key is not taken for a clock."""
    assert plain_clocks(opened(tmp_path, {"model": RAW, "step": value, "epoch": 2}).progress) == {"ep": 2}


def test_numpy_numbers_and_fractions(tmp_path: Path) -> None:
    """A float epoch is exact, 0.3 being three tenths, and leaves no doubt about where epochs begin."""
    progress = opened(tmp_path, {"model": RAW, "epoch": 0.3, "step": np.int64(5)}).progress
    assert progress.clocks[Unit.EPOCH].value == Fraction(3, 10)
    assert progress.epoch_origin_unknown is False


def test_the_optimizers_step_wins(tmp_path: Path) -> None:
    """Where a file counts in several ways, the one that says 'global' is taken."""
    progress = opened(tmp_path, {"step": 1, "iteration": 2, "global_step": 3, "model": RAW}).progress
    assert plain_clocks(progress) == {"ba": 3}


def test_two_places_are_ambiguous(tmp_path: Path) -> None:
    """Tensors in two usual places are an error that names both and the way to choose."""
    saved = {"model": RAW, "state_dict": OTHER}
    error = refusal(tmp_path, saved)
    assert type(error) is CheckpointError
    assert "holds weights under 'model' and under 'state_dict'" in str(error)
    assert error.hint == "say which: key='model'"
    assert holds(opened(tmp_path, saved, key="state_dict"), OTHER)


@pytest.mark.parametrize("key", ["net", "deep.er", "a.b", "list.of.names"])
def test_a_key_says_where(key: str, tmp_path: Path) -> None:
    """`--key` finds weights in any place, dots descending, and keeps the file's clock."""
    nested: dict[str, Any] = {"net": OTHER, "deep": {"er": OTHER}, "a.b": OTHER, "list": {"of.names": OTHER}}
    checkpoint = opened(tmp_path, {"model": RAW, "step": 4, **nested}, key=key)
    assert holds(checkpoint, OTHER)
    assert plain_clocks(checkpoint.progress) == {"ba": 4}


@pytest.mark.parametrize("key", ["nowhere", "model.w", "step", ""])
def test_a_key_that_leads_nowhere_is_an_error(key: str, tmp_path: Path) -> None:
    """A key without tensors under it is an error with the key and a place where there are some."""
    saved = {"model": RAW, "step": 4, "deep": {"er": OTHER}, 10**5000: 1}
    error = refusal(tmp_path, saved, key=key)
    assert f"has no tensors under key={key!r}" in str(error)
    assert error.hint == "say which are the model's: key='model'"


def test_weights_nowhere_we_look(tmp_path: Path) -> None:
    """A file whose weights are in an unusual place says what it holds, and how to point there."""
    error = refusal(tmp_path, {"generator": RAW, "step": 4})
    assert type(error) is NoWeights
    assert "there are tensors at 'generator'" in str(error)
    assert error.hint == "say which are the model's: key='generator'"


@pytest.mark.parametrize(("last", "epoch"), [(True, 3), (False, 2)])
def test_lightning_counts_epochs_from_zero(last: bool, epoch: int, tmp_path: Path) -> None:
    """Lightning's epoch is complete when its last batch is done; then it counts."""
    checkpoint = opened(tmp_path, lightning(last=last))
    assert (checkpoint.trainer, plain_clocks(checkpoint.progress)) == ("Lightning", {"ba": 30, "ep": epoch})
    assert checkpoint.progress.epoch_origin_unknown is False
    assert holds(checkpoint, RAW)


def composer(active: bool, model: dict[str, torch.Tensor], store: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return what Composer pickles while its EMA runs."""
    halves = {"named_parameters_dict": {"w": store["w"]}, "named_buffers_dict": {"n": store["n"]}}
    timestamp = {"Timestamp": {"epoch": 1, "batch": 15, "sample": 60, "token": 0, "batch_in_epoch": 3}}
    ema = ("EMA", {"ema_weights_active": active, "ema_model": halves})
    return {"state": {"model": model, "timestamp": timestamp, "algorithms": [("Other", {}), ema]}, "rng": []}


# For each choice of weights: the tensors, whether they are averages nobody asked for, and the note.
Expected = dict[Choice, tuple[dict[str, torch.Tensor], bool, str | None]]
INSTEAD: Expected = {
    None: (EMA, True, None),
    "raw": (RAW, False, "raw weights taken from beside the averages"),
    "ema": (EMA, False, AVERAGES_AGAIN),
}


def beside(place: str) -> Expected:
    """Return what each choice gives where averages lie beside the raw weights."""
    note = f"raw weights taken; averages lie beside them, in '{place}' (--weights ema)"
    return {None: (RAW, False, note), "raw": (RAW, False, None), "ema": (EMA, False, AVERAGES_AGAIN)}


COUNTED = {"n_averaged": torch.tensor(5), **EMA}
AVERAGES: dict[str, tuple[Any, Expected]] = {
    "Composer, EMA on": (composer(True, EMA, RAW), INSTEAD),
    "Composer, EMA off": (composer(False, RAW, EMA), beside("state.algorithms")),
    "Lightning": (lightning(state_dict=EMA, current_model_state=RAW), INSTEAD),
    "AveragedModel": (COUNTED, {None: (EMA, True, None), "ema": (EMA, False, AVERAGES_AGAIN)}),
    **{place: ({"state_dict": RAW, place: EMA}, beside(place)) for place in PLAIN.beside},
}


@pytest.mark.slow
@pytest.mark.parametrize("choice", [None, "raw", "ema"])
@pytest.mark.parametrize("label", AVERAGES)
def test_averages_and_raw_weights(label: str, choice: Choice, tmp_path: Path) -> None:
    """For each trainer and choice: which tensors are taken, whether that is refused later, and what is said."""
    saved, expected = AVERAGES[label]
    if choice not in expected:
        error = refusal(tmp_path, saved, weights=choice)
        assert (type(error), error.hint) == (NoSuchWeights, "average the averages once more: weights='ema'")
        return
    tensors, averaged, note = expected[choice]
    checkpoint = opened(tmp_path, saved, weights=choice)
    assert holds(checkpoint, tensors)
    assert (checkpoint.averaged is not None) is averaged
    assert (*checkpoint.warnings, *checkpoint.notes) == ((note,) if note else ())
    assert (AVERAGES_AGAIN in checkpoint.warnings) is (choice == "ema")


@pytest.mark.parametrize("saved", [RAW, {"model": RAW}, lightning(), {"state": {"model": RAW}}])
def test_averages_that_are_not_there(saved: Any, tmp_path: Path) -> None:
    """Where a file holds raw weights only, asking for averages is an error, and asking for raw ones is not."""
    error = refusal(tmp_path, saved, weights="ema")
    assert (type(error), error.hint) == (NoSuchWeights, "leave out weights='ema'")
    assert holds(opened(tmp_path, saved, weights="raw"), RAW)


def composer_load(path: Path) -> dict[str, torch.Tensor]:
    """Return the model of a file that Composer wrote, as torch reads it."""
    dtypes = [type(np.dtype(name)) for name in ("uint32", "int64", "float64", "bool")]
    names = [np._core.multiarray._reconstruct, np.ndarray, np.dtype, *dtypes]
    with torch.serialization.safe_globals([*names, torch.torch_version.TorchVersion, datetime.timedelta]):
        model: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state"]["model"]
    return model


@pytest.mark.parametrize("name", ["every-batch/ep0-ba1-rank0.pt", "every-batch/ep1-ba24-rank0.pt"])
def test_composers_own_files(name: str) -> None:
    """A file that Composer wrote gives the tensors that torch reads in it, and all of Composer's clocks."""
    checkpoint = open_checkpoint(COMPOSER / name)
    assert holds(checkpoint, composer_load(COMPOSER / name))
    batch = 1 if "ba1-" in name else 24
    assert plain_clocks(checkpoint.progress) == {"ep": batch // 13, "ba": batch, "sp": 4 * batch}
    assert checkpoint.progress.batch_in_epoch == (1 if batch == 1 else 12)
    assert (checkpoint.trainer, checkpoint.averaged) == ("Composer", None)


@pytest.mark.parametrize("batch", [4, 8, 12])
def test_composers_averages_are_seen_and_the_raw_weights_found(batch: int) -> None:
    """With its EMA on, Composer's model holds averages; the raw weights are those of the same run without it."""
    path = COMPOSER / "ema-was-on" / f"ep0-ba{batch}-rank0.pt"
    found = open_checkpoint(path)
    assert found.averaged == "Composer's EMA was on: 'state.model' holds averages"
    assert holds(found, composer_load(path))
    raw = open_checkpoint(path, ReadOptions(weights="raw"))
    assert holds(raw, composer_load(COMPOSER / "every-batch" / f"ep0-ba{batch}-rank0.pt"))
    assert raw.tensors.specs.keys() == load_file(COMPOSER / "expected" / "10ba-1ba.safetensors").keys()


MMENGINE: dict[str, Any] = {
    "meta": {"epoch": 3, "iter": 300, "cfg": "...", "seed": 1},
    "state_dict": EMA,
    "ema_state_dict": {"steps": torch.tensor(5), **{f"module.{name}": tensor for name, tensor in RAW.items()}},
    "message_hub": {},
    "optimizer": {"state": {}, "param_groups": []},
}


def test_mmengine_swaps_averages_and_raw_weights(tmp_path: Path) -> None:
    """MMEngine's EMAHook saves averages as `state_dict` and the raw weights as `ema_state_dict`.

    Its `before_save_checkpoint` swaps them ("so that we can directly load the averaged model weights").
    """
    assert opened(tmp_path, MMENGINE).averaged
    assert holds(opened(tmp_path, MMENGINE, weights="raw"), RAW)
    assert holds(opened(tmp_path, MMENGINE, weights="ema"), EMA)


def test_an_average_that_our_own_callback_saved_as_the_model(tmp_path: Path) -> None:
    """It says so at the top of the file, and is refused as any other average is."""
    saved = {"pytorch-lightning_version": "2.6.6", "state_dict": EMA, "global_step": 3, "epoch": 0}
    marked = {**saved, "ema_cli": {"version": "0.1.0", "weights": "averages", "average": "5ba"}}
    assert opened(tmp_path, saved).averaged is None
    assert opened(tmp_path, marked).averaged == "ema-cli's callback saved its average as the model"
    assert holds(opened(tmp_path, marked, weights="ema"), EMA)
    assert "holds no raw weights" in str(refusal(tmp_path, marked, weights="raw"))


@pytest.mark.parametrize(
    ("saved", "key"),
    [
        ({"nets": [RAW, OTHER], "step": 4}, "nets.0"),
        ((RAW, {"step": 4}), "0"),
        ([{"step": 4}, {"deep": (OTHER, RAW)}], "1.deep.1"),
    ],
)
def test_weights_in_a_list_have_a_place(saved: Any, key: str, tmp_path: Path) -> None:
    """A dict of tensors in a list is named by its number, and taken by it."""
    error = refusal(tmp_path, saved)
    assert type(error) is NoWeights
    assert f"'{key}'" in str(error)
    assert holds(opened(tmp_path, saved, key=key), RAW)


@pytest.mark.parametrize(
    ("saved", "where"),
    [
        ({"model": list(RAW.values()), "step": 4}, "at 'model'"),
        ({"app": {"weights": tuple(RAW.values())}}, "at 'app.weights'"),
        (list(RAW.values()), "at the top"),
    ],
)
def test_tensors_in_a_list_have_no_names(saved: Any, where: str, tmp_path: Path) -> None:
    """It is said where they are, and what has names."""
    error = refusal(tmp_path, saved)
    assert type(error) is NoWeights
    assert str(error).endswith(f"its tensors are in a list, {where}, and so have no names")
    assert error.hint == "save model.state_dict() and average those files"
