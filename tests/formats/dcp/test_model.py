"""Which tensors of a folder of pieces are the model's: by where they stood, never by a guess between several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ema_cli.errors import CheckpointError, NoSuchWeights, NoWeights
from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.trainers.choice import AVERAGED_AGAIN
from ema_cli.formats.trainers.layouts import PLAIN
from tests.formats.dcp.folders import OPTIMIZER, OTHER, TITAN, W, clocks, composer, holds, prefixed, refusal
from tests.formats.dcp_folders import Pieces, save_folder

ACTIVE = [("EMA", {"ema_weights_active": True, "ema_model": {"named_parameters_dict": OTHER}})]


def test_composers_averages_are_never_taken_for_raw_weights(tmp_path: Path) -> None:
    """`--weights raw` of a sharded Composer run with its EMA on is an error: what it gave were the averages."""
    folder = save_folder(tmp_path / "ep1-ba8", composer(ACTIVE))
    assert type(refusal(folder, weights="raw")) is NoSuchWeights


def test_composers_averages_on_request(tmp_path: Path) -> None:
    """`--weights ema` there takes what `state.model` holds, and says what it is."""
    checkpoint = open_checkpoint(save_folder(tmp_path / "ep1-ba8", composer(ACTIVE)), ReadOptions(weights="ema"))
    assert holds(checkpoint, W)
    assert (checkpoint.averaged, AVERAGED_AGAIN in checkpoint.warnings) == (None, True)


@pytest.mark.parametrize("others", [{"critic": OTHER}, {"second_net": OTHER}, {"discriminator": OTHER}])
def test_two_dicts_of_unknown_names_are_not_one_model(others: Any, tmp_path: Path) -> None:
    """Two dicts of tensors under names that we do not know are not one model: say which."""
    error = refusal(save_folder(tmp_path / "step-8", {"net": W, **others, "step": 8}))
    assert isinstance(error, CheckpointError)
    assert "key=" in (error.hint or "")
    assert holds(open_checkpoint(tmp_path / "step-8", ReadOptions(key="net")), W)


AVERAGES = {
    "ema_net": OTHER,
    "net_ema": prefixed("_orig_mod.", OTHER),
    "swa_model": {"n_averaged": torch.tensor(3), **prefixed("module.", OTHER)},
}


def test_a_dict_that_follows_the_model_may_be_its_averages(tmp_path: Path) -> None:
    """A target network has the names of the model; what is called so and has others is not taken."""
    folder = save_folder(tmp_path / "step-8", {"net": W, "target_net": OTHER, "step": 8})
    raw = open_checkpoint(folder)
    assert holds(raw, W)
    noted = "raw weights taken; what may be their averages lies beside them, in 'target_net' (--weights ema)"
    assert raw.notes == (noted,)
    assert holds(open_checkpoint(folder, ReadOptions(weights="ema")), {**W, **OTHER})
    foreign = open_checkpoint(save_folder(tmp_path / "step-9", {"net": W, "target_net": prefixed("x.", OTHER)}))
    assert foreign.warnings == ("tensors beside the model, at target_net, are not taken (--key)",)


@pytest.mark.parametrize("name", AVERAGES)
def test_a_dict_that_is_called_averages_is_those_of_the_other(name: str, tmp_path: Path) -> None:
    """With the model's names, below a wrapper's prefix or not: either set is taken, under the model's own names."""
    folder = save_folder(tmp_path / "step-8", {"net": W, name: AVERAGES[name], "step": 8})
    raw = open_checkpoint(folder)
    assert holds(raw, W)
    assert f"raw weights taken; averages lie beside them, in '{name}' (--weights ema)" in raw.notes
    assert holds(open_checkpoint(folder, ReadOptions(weights="ema")), {**W, **OTHER})


def test_a_model_of_an_unknown_name_alone(tmp_path: Path) -> None:
    """Where there is nothing else, one dict of tensors is the model, under its own names."""
    checkpoint = open_checkpoint(save_folder(tmp_path / "step-8", {"net": W, "optimizer": OPTIMIZER, "step": 8}))
    assert holds(checkpoint, W)


def test_epochs_of_a_loop_may_begin_at_zero(tmp_path: Path) -> None:
    """An epoch that a training loop saved is 0 or 1 first, as in a plain file: the run tells."""
    assert open_checkpoint(save_folder(tmp_path / "a", {"model": W, "epoch": 0})).progress.epoch_origin_unknown


def test_an_averaged_model_in_pieces(tmp_path: Path) -> None:
    """`n_averaged` beside the weights says averages in a folder of pieces as in a file."""
    state = {"model": {"n_averaged": torch.tensor(3), **prefixed("module.", W)}}
    folder = save_folder(tmp_path / "a", state)
    assert "n_averaged" in (open_checkpoint(folder).averaged or "")
    assert open_checkpoint(folder, ReadOptions(weights="ema")).averaged is None
    assert type(refusal(folder, weights="raw")) is NoSuchWeights


@pytest.mark.parametrize("place", PLAIN.beside)
def test_averages_under_the_usual_names(place: str, tmp_path: Path) -> None:
    """Averages beside the model are named, and taken on request."""
    folder = save_folder(tmp_path / "a", {"model": W, f"{place}": OTHER, "optimizer": OPTIMIZER})
    plain = open_checkpoint(folder)
    assert holds(plain, W)
    if place != "ema":  # torchtitan's, which holds more than tensors of the model's names
        assert plain.notes == (f"raw weights taken; averages lie beside them, in '{place}' (--weights ema)",)
        assert holds(open_checkpoint(folder, ReadOptions(weights="ema")), OTHER)


@pytest.mark.parametrize("place", [each for each in PLAIN.beside if each != "ema"])
def test_nothing_but_averages(place: str, tmp_path: Path) -> None:
    """Averages alone are averages: refused later, and no raw weights on request."""
    folder = save_folder(tmp_path / "a", {place: OTHER, "step": 3})
    assert open_checkpoint(folder).averaged
    assert type(refusal(folder, weights="raw")) is NoSuchWeights


def test_torchtitans_averages_lie_beside(tmp_path: Path) -> None:
    """Averages of parameters beside the model are named, and taken on request; buffers are the model's."""
    averages = {"state.layers.0.weight.ema_params": OTHER["layers.0.weight"]}
    folder = save_folder(tmp_path / "step-8", {**TITAN, "ema": averages})
    plain = open_checkpoint(folder)
    assert holds(plain, W)
    assert plain.notes == ("raw weights taken; averages lie beside them, in 'ema' (--weights ema)",)
    assert open_checkpoint(folder, ReadOptions(weights="raw")).notes == ()
    chosen = open_checkpoint(folder, ReadOptions(weights="ema"))
    assert holds(chosen, {**W, "layers.0.weight": OTHER["layers.0.weight"]})
    assert (chosen.warnings, chosen.notes) == ((AVERAGED_AGAIN,), ())


def test_a_key_says_where(tmp_path: Path) -> None:
    """`--key` takes the tensors below it; one that leads nowhere is an error."""
    folder = save_folder(tmp_path / "step-8", {"generator": W, "discriminator": OTHER, "step": 8})
    checkpoint = open_checkpoint(folder, ReadOptions(key="discriminator"))
    assert holds(checkpoint, OTHER)
    assert clocks(checkpoint) == {"ba": 8}
    assert type(refusal(folder, key="nowhere")) is NoWeights


def test_several_models_are_ambiguous(tmp_path: Path) -> None:
    """Two models are an error that lists them and says how to choose."""
    state = {"a": {"model": W, "optim": OPTIMIZER}, "b": {"model": OTHER}}
    error = refusal(save_folder(tmp_path / "step-8", state))
    assert "holds models at a.model, b.model" in str(error)
    assert error.hint == "say which to take: key='a.model'"
    assert holds(open_checkpoint(tmp_path / "step-8", ReadOptions(key="b.model")), OTHER)


@pytest.mark.parametrize("prefix", ["state.model.", "app.model.", "model."])
def test_names_that_were_flattened_without_a_record(prefix: str, tmp_path: Path) -> None:
    """Where nothing says how names were nested, the model is what begins as models do, beside an optimizer."""
    pieces = Pieces(tmp_path)
    for name, tensor in prefixed(prefix, W).items():
        pieces.add(name, tensor)
    pieces.add(f"{prefix.removesuffix('model.')}optimizer.state.w.exp_avg", torch.ones(2))
    if prefix == "model.":
        pieces.add("optimizer.state.v.exp_avg", torch.ones(2))
    assert holds(open_checkpoint(pieces.write()), W)


def test_a_model_whose_names_begin_alike_keeps_them(tmp_path: Path) -> None:
    """'model.' may be the first part of a model's own names: alone in a folder they stay."""
    pieces = Pieces(tmp_path)
    for name, tensor in prefixed("model.", W).items():
        pieces.add(name, tensor)
    assert holds(open_checkpoint(pieces.write()), prefixed("model.", W))


def test_a_folder_of_optimizers_holds_no_weights(tmp_path: Path) -> None:
    """What is known to be no model's is none, wherever it stands."""
    error = refusal(save_folder(tmp_path / "a", {"optim": OPTIMIZER, "rng": torch.ones(2)}))
    assert (type(error), error.hint) == (NoWeights, None)
    assert str(error).endswith("no tensors in a place we know for a model; at the top it holds 'optim', 'rng'")
