"""Where averages lie: in the model's place, beside it, in its state dict, in callbacks; and which set is then taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import NoSuchWeights
from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import Choice, ReadOptions
from tests.formats.reading import read_all
from tests.formats.trainers.state import holds, lightning, opened, refusal

State = dict[str, torch.Tensor]


def model(value: float) -> State:
    """Return a small model with a BatchNorm, each tensor of another shape or value."""
    return {
        "conv.weight": torch.arange(12).reshape(4, 3) / 16 + value,
        "conv.bias": torch.full((4,), value + 0.25),
        "bn.weight": torch.full((4,), value + 0.5),
        "bn.running_mean": torch.full((4,), value + 0.75),
        "bn.num_batches_tracked": torch.tensor(int(value * 10)),
    }


RAW, EMA = model(1.0), model(2.0)
PARAMETERS = ("conv.weight", "conv.bias", "bn.weight")
PARTLY = {**RAW, **{name: EMA[name] for name in PARAMETERS}}  # averages of the parameters alone


def under(prefix: str, state: State) -> State:
    """Return a state dict with a prefix in its names."""
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def listed(state: State) -> list[torch.Tensor]:
    """Return the parameters as `model.parameters()` lists them."""
    return [state[name].clone() for name in PARAMETERS]


def flat(state: State, joint: str) -> State:
    """Return the parameters under names without dots."""
    return {name.replace(".", joint): state[name] for name in PARAMETERS}


class Shadow:
    """An object of a class of somebody's own, which keeps averages."""

    def __init__(self, shadow: State) -> None:
        self.decay = 0.999
        self.shadow = shadow


def torch_ema(shadow: State, stored: State | None) -> dict[str, Any]:
    """Return the state that torch_ema's ExponentialMovingAverage has."""
    collected = listed(stored) if stored else None
    return {"decay": 0.9, "num_updates": 7, "shadow_params": listed(shadow), "collected_params": collected}


# Raw weights in the place of the model, averages beside it: the file, the place of the averages, and the averages.
BESIDE: dict[str, tuple[Any, str, State]] = {
    "EMA's own object, one level down": ({"model": RAW, "ema": {"module": EMA, "updates": 5}}, "ema", EMA),
    "an object that was pickled": ({"model": RAW, "ema": Shadow(EMA)}, "ema", EMA),
    "a whole AveragedModel": ({"model": RAW, "model_ema": {"n_averaged": torch.tensor(3), **under("module.", EMA)}},
                              "model_ema", EMA),
    "of parameters alone": ({"model": RAW, "ema_state": {n: EMA[n] for n in PARAMETERS}}, "ema_state", PARTLY),
    "lists": ({"state_dict": RAW, "ema": torch_ema(EMA, None)}, "ema", PARTLY),
    "ema-pytorch": (
        {"model": RAW, "step": 4,
         "ema": {"initted": torch.tensor(True), "step": torch.tensor(4), **under("online_model.", RAW),
                 **under("ema_model.", EMA)}},
        "ema", EMA,
    ),
    "below DDP": ({"model": under("module.", RAW), "ema": EMA}, "ema", under("module.", EMA)),
    "a partner by name": ({"params": RAW, "params_ema": EMA}, "params_ema", EMA),
    "two networks": ({"g": RAW, "d": {"x": torch.ones(5)}, "g_ema": EMA}, "g_ema", EMA),
    "two networks alike": ({"g": RAW, "d": model(5.0), "g_ema": EMA}, "g_ema", EMA),
    "net_ema": ({"net": RAW, "net_ema": EMA, "opt": {}}, "net_ema", EMA),
    "swa": ({"state_dict": RAW, "swa_state_dict": EMA}, "swa_state_dict", EMA),
    "torch_ema that stored raw weights once": ({"model": RAW, "ema": torch_ema(EMA, model(0.5))}, "ema", PARTLY),
    "NeMo's optimizer": (
        lightning(state_dict=RAW, optimizer_states=[{"opt": {"state": {}}, "ema": tuple(listed(EMA)), "decay": 0.9}]),
        "optimizer_states.0.ema", PARTLY,
    ),
    "a callback": (lightning(state_dict=RAW, callbacks={"EMA": {"cur_step": 3, "ema_weights": [*EMA.values()]}}),
                   "callbacks.EMA.ema_weights", EMA),
    "Lightning's StochasticWeightAveraging": (
        lightning(state_dict=RAW, callbacks={"SWA": {"n_averaged": torch.tensor(2), "average_model_state": EMA}}),
        "callbacks.SWA.average_model_state", EMA,
    ),
    "a callback's dict": (lightning(state_dict=RAW, callbacks={"EMA": {"ema_state_dict": EMA}}),
                          "callbacks.EMA.ema_state_dict", EMA),
    "a callback that stored raw weights once": (
        lightning(state_dict=RAW, callbacks={"E": {"ema": torch_ema(EMA, model(0.5))}}),
        "callbacks.E.ema.shadow_params", PARTLY,
    ),
    "flattened names": ({"model": RAW, "ema": flat(EMA, "_")}, "ema", PARTLY),
    "a list at the top": ({"model": RAW, "ema": [*EMA.values()]}, "ema", EMA),
    "one level down": ({"state": {"model": RAW, "ema": EMA}, "step": 3}, "state.ema", EMA),
    "one level down, of parameters": (
        {"state": {"model": RAW, "ema_params": flat(EMA, "_")}}, "state.ema_params", PARTLY),
    "beside a dict around the model": ({"state": {"model": RAW}, "ema": EMA}, "ema", EMA),
    "a pair in a dict of another name": ({"trainer": {"net": RAW, "net_ema": EMA, "step": 3}}, "trainer.net_ema", EMA),
    "a pair further down": (
        {"run": {"nets": {"G": RAW, "D": {"x": torch.ones(5)}, "G_ema": EMA}}}, "run.nets.G_ema", EMA),
    "a callback one level down": (
        {"state": {"model": RAW, "callbacks": {"E": {"ema_weights": EMA}}}}, "state.callbacks.E.ema_weights", EMA),
    "modelEMA": ({"model": RAW, "modelEMA": EMA}, "modelEMA", EMA),
    "emaModel": ({"net": RAW, "emaNet": EMA}, "emaNet", EMA),
    "averages that are numbered": ({"model": RAW, "ema2": EMA}, "ema2", EMA),
    "mmcv's buffers, in the middle of an epoch": ({"state_dict": {**RAW, **under("ema_", flat(EMA, "_"))}}, "ema_*",
                                                  PARTLY),
}  # fmt: skip


def bare(state: State) -> State:
    """Return a state dict without the prefix that a wrapper put there."""
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def look(folder: Path, saved: object, weights: Choice, name: str = "a.pt") -> Checkpoint:
    """Save something with torch under a name and open it."""
    torch.save(saved, folder / name)
    return open_checkpoint(folder / name, ReadOptions(weights=weights))


@pytest.mark.parametrize("label", BESIDE)
def test_averages_beside_raw_weights(label: str, tmp_path: Path) -> None:
    """The raw weights are taken and the averages named; on request these, under the names that the model has."""
    saved, place, averages = BESIDE[label]
    name = "iter_300.pth" if "middle" in label else "a.pt"
    found = look(tmp_path, saved, None, name)
    assert holds(found, RAW)
    assert found.averaged is None
    assert f"raw weights taken; averages lie beside them, in '{place}' (--weights ema)" in found.notes
    assert holds(look(tmp_path, saved, "raw", name), RAW)
    chosen = look(tmp_path, saved, "ema", name)
    assert holds(chosen, bare(averages))
    assert "these are averages, which are averaged again" in chosen.warnings


# What follows the model for any reason, which only its name says.
FOLLOWERS: dict[str, tuple[dict[str, Any], str]] = {
    "a teacher": ({"student": RAW, "teacher": EMA, "epoch": 3}, "teacher"),
    "a target model": ({"model": RAW, "target_model": EMA}, "target_model"),
    "a slow model": ({"model": RAW, "slow_model": EMA, "optimizer": {}}, "slow_model"),
    "a momentum encoder": ({"encoder": RAW, "momentum_encoder": EMA}, "momentum_encoder"),
    "a target network one level down": ({"agent": {"q": RAW, "q_target": EMA, "step": 3}}, "agent.q_target"),
    "teacherModel": ({"studentModel": RAW, "teacherModel": EMA}, "teacherModel"),
}


@pytest.mark.parametrize("label", FOLLOWERS)
def test_what_may_be_averages_is_said_to_be_no_more(label: str, tmp_path: Path) -> None:
    """A copy that is made now and then has such names, too; the user decides."""
    saved, place = FOLLOWERS[label]
    found = look(tmp_path, saved, None)
    assert holds(found, RAW)
    noted = f"raw weights taken; what may be their averages lies beside them, in '{place}' (--weights ema)"
    assert noted in found.notes
    assert holds(look(tmp_path, saved, "ema"), EMA)


@pytest.mark.parametrize("name", ["target_model", "teacher", "momentum"])
def test_a_model_of_the_same_shapes_that_does_not_follow_is_no_average(name: str, tmp_path: Path) -> None:
    """A large teacher's student, or the momentum of an optimizer, has names and shapes, and other numbers."""
    shapes = {"conv.weight": (8, 9), "conv.bias": (8,)}
    ours = drawn(shapes)
    other = {key: tensor.flip(0) for key, tensor in ours.items()}
    found = look(tmp_path, {"model": ours, name: other}, None)
    assert holds(found, ours)
    assert found.warnings == (f"tensors beside the model, at '{name}', are not taken (--key)",)
    with pytest.raises(NoSuchWeights, match="holds no averages"):
        look(tmp_path, {"model": ours, name: other}, "ema")


def test_the_averages_of_gradients_are_none_of_weights(tmp_path: Path) -> None:
    """An optimizer's exp_avg has the names and shapes of the model."""
    with pytest.raises(NoSuchWeights, match="holds no averages"):
        look(tmp_path, {"model": RAW, "exp_avg": EMA, "exp_avg_sq": EMA}, "ema")


def test_averages_beside_what_the_user_names(tmp_path: Path) -> None:
    """`--key` says where the model is, and `--weights ema` takes its averages, not what stands at the key."""
    saved = {"run": {"weights": RAW, "others": {"x": torch.ones(5)}, "ema": EMA}, "model": model(7.0)}
    for choice, expected in ((None, RAW), ("raw", RAW), ("ema", EMA)):
        assert holds(opened(tmp_path, saved, key="run.weights", weights=choice), expected)
    assert refusal(tmp_path, saved, key="run.others", weights="ema").fact == "holds no averages"
    assert holds(opened(tmp_path, saved, key="run.ema", weights="ema"), EMA)


# Averages in the place of the model: the file, the averages there, and the raw weights, None where there are none.
INSTEAD: dict[str, tuple[Any, State, State | None]] = {
    "mmcv's buffers": ({"meta": {}, "state_dict": {**EMA, **under("ema_", flat(RAW, "_"))}}, EMA,
                       {**EMA, **{name: RAW[name] for name in PARAMETERS}}),
    "torch_ema in a callback": (
        lightning(state_dict=PARTLY, callbacks={"E": {"ema": torch_ema(EMA, RAW)}}), PARTLY, RAW),
    "torch_ema beside the model": ({"model": PARTLY, "ema": torch_ema(EMA, RAW)}, PARTLY, RAW),
    "torch_ema at Lightning's top": (lightning(state_dict=PARTLY, ema=torch_ema(EMA, RAW)), PARTLY, RAW),
    "a callback that keeps no raw weights": (
        lightning(state_dict=PARTLY, callbacks={"E": {"ema": torch_ema(EMA, None)}}), PARTLY, None),
    "NeMo's second file": (
        lightning(state_dict=PARTLY, optimizer_states=[{"opt": {}, "ema": listed(EMA)}]), PARTLY, None),
    "a stripped YOLO": (
        {"epoch": -1, "best_fitness": None, "model": EMA, "ema": None, "updates": None, "optimizer": None}, EMA, None),
    "schedule-free in eval mode": (
        {"model": EMA, "optimizer": {"state": {}, "param_groups": [{"k": 9, "train_mode": False, "weight_sum": 1.0}]}},
        EMA, None),
}  # fmt: skip


@pytest.mark.parametrize("label", INSTEAD)
def test_averages_in_the_place_of_the_model(label: str, tmp_path: Path) -> None:
    """They are seen, for `average` to refuse; asked for, each set is taken, or its absence said."""
    saved, averages, raw = INSTEAD[label]
    found = opened(tmp_path, saved)
    assert holds(found, averages)
    assert found.averages is not None
    assert found.averages.has_raw is (raw is not None)
    assert holds(opened(tmp_path, saved, weights="ema"), averages)
    if raw is None:
        assert type(refusal(tmp_path, saved, weights="raw")) is NoSuchWeights
    else:
        assert holds(opened(tmp_path, saved, weights="raw"), raw)


PARTS = {
    "latent diffusion's LitEma": under("model_ema.", flat(EMA, "")),
    "an AveragedModel inside": under("ema_model.module.", EMA) | {"ema_model.n_averaged": torch.tensor(4)},
    "a second network": under("net_ema.", EMA),
}


@pytest.mark.parametrize("label", PARTS)
def test_a_part_of_the_model_that_is_its_average(label: str, tmp_path: Path) -> None:
    """The raw weights, or the averages, stand in both places, so that the model loads strictly."""
    part, number = PARTS[label], {"ema.decay": torch.tensor(0.5)}
    saved = {"state_dict": {**under("model.", RAW), **part, **number}}
    covered = flat(EMA, "") if label.startswith("latent") else EMA

    def whole(state: State, of_model: State) -> State:
        values = {**flat(state, ""), **state}
        tied = {name: values[key] for name in part for key in covered if name.endswith(f".{key}")}
        counted = {name: tensor for name, tensor in part.items() if name not in tied}
        assert len(tied) == len(covered)
        return {**under("model.", of_model), **tied, **counted, **number}

    assert holds(opened(tmp_path, saved), whole(RAW, RAW))
    assert holds(opened(tmp_path, saved, weights="raw"), whole(RAW, RAW))
    partly = PARTLY if label.startswith("latent") else EMA
    assert holds(opened(tmp_path, saved, weights="ema"), whole(EMA, partly))


@pytest.mark.parametrize("label", PARTS)
def test_such_a_part_in_safetensors(label: str, tmp_path: Path) -> None:
    """The same where a header lists the tensors: a model for latent diffusion is often one such file."""
    saved = {**under("model.", RAW), **PARTS[label]}
    save_file(saved, tmp_path / "a.safetensors")
    torch.save(saved, tmp_path / "a.pt")
    for weights in (ReadOptions(), ReadOptions(weights="raw"), ReadOptions(weights="ema")):
        header, pickled = (open_checkpoint(tmp_path / name, weights) for name in ("a.safetensors", "a.pt"))
        assert read_all(header.tensors) == read_all(pickled.tensors)
        assert (header.warnings, header.notes) == (pickled.warnings, pickled.notes)


def test_a_part_that_counts_its_updates_is_an_average_whatever_its_numbers(tmp_path: Path) -> None:
    """The counter is a sign that no layer has."""
    shapes: dict[str, tuple[int, ...]] = {"net.w": (9, 9), "net.b": (9,), "ema_net.w": (9, 9), "ema_net.b": (9,)}
    assert not opened(tmp_path, drawn(shapes)).holds_both
    assert opened(tmp_path, drawn(shapes) | {"ema_net.num_updates": torch.tensor(4)}).holds_both


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod.", "algorithm."])
@pytest.mark.parametrize("label", PARTS)
def test_such_a_part_below_a_wrapper(label: str, wrapper: str, tmp_path: Path) -> None:
    """What is around all of the model hides no averages in it."""
    saved = {**under("net.", RAW), **PARTS[label]}
    torch.save(saved, tmp_path / "plain.pt")
    torch.save(under(wrapper, saved), tmp_path / "a.pt")
    save_file(under(wrapper, saved), tmp_path / "a.safetensors")
    for weights in (None, "raw", "ema"):
        options = ReadOptions(weights=weights, keep_prefix=True)
        plain = open_checkpoint(tmp_path / "plain.pt", options)
        expected = {f"{wrapper}{name}": stored for name, stored in read_all(plain.tensors).items()}
        for name in ("a.pt", "a.safetensors"):
            found = open_checkpoint(tmp_path / name, options)
            assert read_all(found.tensors) == expected
            assert found.holds_both


def test_two_models_with_averages_are_asked_about(tmp_path: Path) -> None:
    """None of them is taken for the whole; each is named, and its averages, by `--key`."""
    saved = {"g_a": RAW, "g_b": model(5.0), "g_a_ema": EMA, "g_b_ema": model(6.0), "d": {"x": torch.ones(5)}}
    for weights in (None, "raw", "ema"):
        assert "holds weights under 'g_a' and under 'g_b'" in str(refusal(tmp_path, saved, weights=weights))
    noted = "raw weights taken; averages lie beside them, in '{}_ema' (--weights ema)"
    for name, averages in (("g_a", EMA), ("g_b", model(6.0))):
        assert opened(tmp_path, saved, key=name).notes == (noted.format(name),)
        assert holds(opened(tmp_path, saved, key=name, weights="ema"), averages)
    found = opened(tmp_path, saved, key="g_b_ema")
    assert holds(found, model(6.0))
    assert found.warnings == ("these are averages, which are averaged again",)


def drawn(shapes: dict[str, tuple[int, ...]]) -> State:
    """Return tensors that have nothing to do with each other."""
    source = torch.Generator().manual_seed(4)
    return {name: torch.randn(shape, generator=source) for name, shape in shapes.items()}


LAYERS_OF_THEIR_OWN: dict[str, dict[str, tuple[int, ...]]] = {
    "a pooling that looks like a norm": {
        "stem.weight": (8, 3), "norm.weight": (8,), "norm.bias": (8,), "avg_pool.weight": (8,), "avg_pool.bias": (8,)},
    "two branches": {
        "main.fc.weight": (8, 8), "main.fc.bias": (8,), "shadow.fc.weight": (8, 8), "shadow.fc.bias": (8,)},
    "one in two": {"conv.weight": (9, 9), "avg.weight": (9, 9)},
    "single numbers": {"gain.weight": (1,), "avg.weight": (1,)},
    "a code book": {"weight": (8, 4), "bias": (8,), "scale": (4,), "ema_weight": (8, 4)},
}  # fmt: skip


@pytest.mark.parametrize("label", LAYERS_OF_THEIR_OWN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_a_layer_that_is_only_called_so_stays_as_it_is(label: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Names and shapes fit, the numbers do not: no tensor takes the place of another, and nothing is said."""
    saved = {name: tensor.to(dtype) for name, tensor in drawn(LAYERS_OF_THEIR_OWN[label]).items()}
    torch.save(saved, tmp_path / "a.pt")
    save_file(saved, tmp_path / "a.safetensors")
    for name in ("a.pt", "a.safetensors"):
        found = open_checkpoint(tmp_path / name, ReadOptions())
        assert holds(found, saved)
        assert (found.averages, found.holds_both, found.notes) == (None, False, ())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_a_part_that_follows_the_rest_is_its_average(dtype: torch.dtype, tmp_path: Path) -> None:
    """Far behind the weights as an average may be, it is correlated with them."""
    first = drawn({"net.fc.weight": (16, 8), "net.fc.bias": (16,)})
    raw = {name: tensor + tensor.flip(0) for name, tensor in first.items()}
    saved = {**raw, **{f"ema_{name}": tensor for name, tensor in first.items()}}
    saved = {name: tensor.to(dtype) for name, tensor in saved.items()}
    torch.save(saved, tmp_path / "a.pt")
    save_file(saved, tmp_path / "a.safetensors")
    for name in ("a.pt", "a.safetensors"):
        assert open_checkpoint(tmp_path / name, ReadOptions()).holds_both


def test_ema_pytorchs_wrapper_saved_by_itself(tmp_path: Path) -> None:
    """It holds two models: either is taken under the model's own names."""
    saved = {"initted": torch.tensor(True), "step": torch.tensor(9)}
    saved |= {**under("online_model.", RAW), **under("ema_model.", EMA)}
    for whole in (saved, {"ema": saved, "step": 9}):
        assert holds(opened(tmp_path, whole), RAW)
        assert holds(opened(tmp_path, whole, weights="ema"), EMA)


class Net(nn.Sequential):
    """A model with buffers, floating and integer."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 4), nn.BatchNorm1d(4))


def averaged_model(updates: int) -> tuple[Net, AveragedModel]:
    """Return a model and its AveragedModel, updated some times."""
    net = Net()
    averaged = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    for _ in range(updates):
        for tensor in net.state_dict().values():
            tensor.add_(1)
        averaged.update_parameters(net)
    return net, averaged


def test_an_averaged_model_gives_the_models_own_names(tmp_path: Path) -> None:
    """What `--weights ema` takes of an AveragedModel loads into the model itself."""
    _, averaged = averaged_model(3)
    found = opened(tmp_path, averaged.state_dict(), weights="ema")
    assert holds(found, averaged.module.state_dict())
    assert "n_averaged" in (opened(tmp_path, averaged.state_dict()).averaged or "")


def not_begun_lightning() -> dict[str, Any]:
    """Return what Lightning saves before its WeightAveraging has begun."""
    state = {"n_averaged": torch.tensor(0)}
    return lightning(state_dict=EMA, current_model_state=RAW, averaging_state=state)


NOT_BEGUN: dict[str, Callable[[], Any]] = {
    "AveragedModel": lambda: averaged_model(0)[1].state_dict(),
    "AveragedModel beside": lambda: {
        "model": RAW, "model_ema": {"n_averaged": torch.tensor(0), **under("module.", EMA)}},
    "Lightning": not_begun_lightning,
    "torch_ema": lambda: {"model": RAW, "ema": torch_ema(EMA, None) | {"num_updates": 0}},
    "a YOLO": lambda: {"model": RAW, "ema": {"module": EMA, "updates": 0}},
    "a callback": lambda: lightning(callbacks={"E": {"ema": torch_ema(RAW, None) | {"num_updates": 0}}},
                                    state_dict=RAW),
}  # fmt: skip


@pytest.mark.parametrize("label", NOT_BEGUN)
def test_averages_that_have_not_begun_are_not_taken(label: str, tmp_path: Path) -> None:
    """Before the first update the averages are the untrained model: asked for, they are not there."""
    error = refusal(tmp_path, NOT_BEGUN[label](), weights="ema")
    assert type(error) is NoSuchWeights
    assert "holds no averages yet: they have not been updated once" in str(error)


@pytest.mark.parametrize("label", [label for label in NOT_BEGUN if label != "AveragedModel"])
def test_raw_weights_beside_averages_that_have_not_begun(label: str, tmp_path: Path) -> None:
    """They are there all the same."""
    assert holds(opened(tmp_path, NOT_BEGUN[label](), weights="raw"), RAW)


def test_lists_that_fit_in_two_ways_are_no_averages_of_known_names(tmp_path: Path) -> None:
    """Where weights were stored while averages took their place, that is doubt: refused, and the user is believed."""
    state = {name: torch.full((2,), float(number)) for number, name in enumerate("abc")}
    two = [torch.ones(2), torch.ones(2)]
    kept = {"ema": {"shadow_params": two, "collected_params": two}}
    saved = lightning(state_dict=state, callbacks={"E": kept})
    found = opened(tmp_path, saved)
    assert found.averages is not None
    assert not found.averages.sure
    chosen = opened(tmp_path, saved, weights="raw")
    assert holds(chosen, state)
    assert any("as --weights raw says" in text for text in chosen.warnings)
    alone = lightning(state_dict=state, callbacks={"E": {"ema": {"shadow_params": two, "collected_params": None}}})
    assert opened(tmp_path, alone).averages is None


def test_averages_of_another_type_than_the_model_leave_doubt(tmp_path: Path) -> None:
    """Nothing tells whether a model in bfloat16 is the average in float32: refused, and the user is believed."""
    narrow = {name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in RAW.items()}
    saved = lightning(state_dict=narrow, callbacks={"E": {"ema": torch_ema(EMA, RAW)}})
    found = opened(tmp_path, saved)
    assert found.averages is not None
    assert not found.averages.sure
    assert holds(opened(tmp_path, saved, weights="raw"), narrow)
    kept = lightning(state_dict=narrow, callbacks={"E": {"ema": torch_ema(EMA, None)}})
    assert opened(tmp_path, kept).averages is None


def test_a_schedule_free_optimizer_in_train_mode_is_said(tmp_path: Path) -> None:
    """The weights are neither its iterates nor its averages; that is a note."""
    group = {"k": 9, "train_mode": True, "weight_sum": 1.0}
    found = opened(tmp_path, {"model": RAW, "optimizer": {"state": {}, "param_groups": [group]}})
    assert holds(found, RAW)
    assert any("schedule-free optimizer was in train mode" in text for text in found.warnings)


@pytest.mark.parametrize(
    "saved",
    [
        {"model": RAW, "ema_decay": 0.99, "ema": None},
        {"model": RAW, "swa": {"start": 10}},
        {"model": RAW, "ema": {"other": torch.ones(7, 7)}, "optimizer": {"state": {0: {"exp_avg": torch.ones(4, 3)}}}},
        {"model": {**RAW, "quantize.embed_avg": torch.ones(2, 2), "ema_w": torch.ones(3)}},
    ],
)
def test_what_is_called_averages_and_is_none(saved: dict[str, Any], tmp_path: Path) -> None:
    """A setting, an optimizer's moments, a code book that moves: the model is raw, whole, and taken."""
    found = opened(tmp_path, saved)
    assert found.averaged is None
    assert holds(found, saved["model"])


def test_a_state_that_include_self_adds_is_left_out(tmp_path: Path) -> None:
    """ignite's Checkpoint may put its own state, a dict of lists, among the tensors."""
    found = opened(tmp_path, {**RAW, "checkpointer": {"_saved": [(10, "model_10.pt")]}})
    assert holds(found, RAW)
    assert found.notes == ("not tensors, left out: 'checkpointer'",)
