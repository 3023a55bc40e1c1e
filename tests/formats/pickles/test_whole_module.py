"""Whole pickled modules: the names, the order and the bytes of their `state_dict()`; hooks are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from ema_cli.errors import CheckpointError, EmaError
from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.pickles import whole_module
from ema_cli.formats.pickles.values import Inert
from ema_cli.formats.pickles.whole_module import is_module, module_tensors
from tests.formats.reading import read_all, stored_bytes

AS_THEY_ARE = ReadOptions(keep_prefix=True)


def hook(*_: object) -> None:
    """Stand for a hook, found by its name."""


class Buffers(nn.Module):
    """Buffers that are saved, and ones that are not; places that hold nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.arange(3))
        self.register_buffer("transient", torch.ones(2), persistent=False)
        self.register_buffer("none", None)
        self.register_parameter("absent", None)
        self.weight = nn.Parameter(torch.randn(2, 3))
        self.attribute = torch.ones(4)  # no entry of the state dict
        self.inner = nn.Linear(3, 2, bias=False)
        self.empty = None


class TransientParameter(nn.Module):
    """A buffer that was not saved, whose name has become a parameter's."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("w", torch.ones(2), persistent=False)
        del self._buffers["w"]
        self._parameters["w"] = nn.Parameter(torch.randn(2))


class Wrapper(nn.Module):
    """What DistributedDataParallel and its like are: a module around another."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def shared() -> nn.Module:
    """Return a module that has one part under two names, and one parameter in two parts."""
    part = nn.Linear(2, 2)
    tied = nn.Linear(2, 2, bias=False)
    tied.weight = part.weight
    return nn.ModuleDict({"b": part, "a": nn.Sequential(part, nn.ReLU()), "tied": tied})


def containers() -> nn.Module:
    """Return the modules that hold lists and dicts of modules and of parameters."""
    weights = nn.ParameterList([nn.Parameter(torch.randn(2)) for _ in range(11)])
    named = nn.ParameterDict({"z": nn.Parameter(torch.randn(1)), "a": nn.Parameter(torch.randn(1))})
    return nn.ModuleDict(
        {"list": nn.ModuleList([nn.Linear(1, 1) for _ in range(11)]), "weights": weights, "named": named}
    )


def strided() -> nn.Module:
    """Return a module whose tensors do not lie in order."""
    module = nn.Linear(3, 4)
    module.weight = nn.Parameter(torch.randn(3, 4).t())
    module.register_buffer("row", module.weight.detach()[1])
    return module.to(memory_format=torch.channels_last)


def weight_norm() -> nn.Module:
    """Return a module with the older weight_norm, whose own weight is computed."""
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(nn.Linear(2, 3))


MODULES: dict[str, Callable[[], nn.Module]] = {
    "buffers": Buffers,
    "a transient buffer that became a parameter": TransientParameter,
    "norms": lambda: nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.LSTM(2, 2, num_layers=2)),
    "attention": lambda: nn.TransformerEncoderLayer(4, 2),
    "shared": shared,
    "containers": containers,
    "wrapped": lambda: Wrapper(nn.DataParallel(nn.Linear(2, 2))),
    "strided": strided,
    "bfloat16": lambda: nn.Linear(2, 2).bfloat16().requires_grad_(False),
    "complex": lambda: nn.Linear(2, 2, dtype=torch.complex64),
    "weight norm": weight_norm,
    "nothing above": lambda: nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(1, 1))),
    "other sizes beside": lambda: nn.ModuleDict({"model": nn.Linear(1, 1), "ema": nn.Linear(1, 2)}),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("label", MODULES)
def test_the_tensors_are_those_of_the_state_dict(label: str, legacy: bool, tmp_path: Path) -> None:
    """Names, their order and every byte are those of `state_dict()`, and nothing else is taken."""
    module = MODULES[label]()
    torch.save(module, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    found = open_checkpoint(tmp_path / "a.pt", AS_THEY_ARE)
    expected = {name: stored_bytes(tensor) for name, tensor in module.state_dict().items()}
    assert list(found.tensors.specs) == list(expected)
    assert read_all(found.tensors) == expected


@pytest.mark.parametrize("place", ["model", "state_dict", "module"])
def test_a_module_where_weights_are_usual(place: str, tmp_path: Path) -> None:
    """A module under one of the usual names is read as the state dict that might be there."""
    module = nn.Linear(2, 2)
    torch.save({place: module, "step": 3, "optimizer": {"state": {}}}, tmp_path / "a.pt")
    expected = {name: stored_bytes(tensor) for name, tensor in module.state_dict().items()}
    assert read_all(open_checkpoint(tmp_path / "a.pt").tensors) == expected
    assert read_all(open_checkpoint(tmp_path / "a.pt", ReadOptions(key=place)).tensors) == expected


def test_prefixes_of_wrappers_go(tmp_path: Path) -> None:
    """A wrapper around the whole model leaves no trace in the names."""
    torch.save(Wrapper(nn.Linear(2, 2)), tmp_path / "a.pt")
    assert list(open_checkpoint(tmp_path / "a.pt").tensors.specs) == ["weight", "bias"]


def test_an_averaged_model_is_recognised(tmp_path: Path) -> None:
    """torch's AveragedModel, pickled whole, holds averages; it says so."""
    torch.save(torch.optim.swa_utils.AveragedModel(nn.Linear(2, 2)), tmp_path / "a.pt")
    assert "n_averaged" in (open_checkpoint(tmp_path / "a.pt").averaged or "")


def refusal(module: object, folder: Path) -> EmaError:
    """Return the error that a saved module gives."""
    torch.save(module, folder / "a.pt")
    with pytest.raises(EmaError) as caught:
        open_checkpoint(folder / "a.pt")
    assert str(caught.value).startswith(f"{folder / 'a.pt'}: ")
    return caught.value


@pytest.mark.parametrize(
    "register", ["register_state_dict_post_hook", "_register_state_dict_hook", "register_state_dict_pre_hook"]
)
@pytest.mark.parametrize("place", ["", "1.0"])
def test_hooks_are_refused(register: str, place: str, tmp_path: Path) -> None:
    """Hooks may change names and tensors, as only they know: an error with the module's place and class."""
    module = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(2, 2)))
    getattr(module.get_submodule(place), register)(Hook())
    error = refusal(module, tmp_path)
    where = "'1.0' (torch.nn.modules.linear.Linear)" if place else "at the top (torch.nn.modules.container.Sequential)"
    assert f"its module {where} has hooks that change its state dict" in str(error)
    assert error.hint == "save model.state_dict() and average those files"


class Hook:
    """A hook that can be pickled."""

    def __call__(self, *_: object) -> None:
        """Do nothing."""


def test_hooks_on_loading_and_running_do_not_matter(tmp_path: Path) -> None:
    """Hooks that do not change what is saved are let pass."""
    module = nn.Linear(2, 2)
    module.register_forward_hook(hook)
    module.register_load_state_dict_pre_hook(hook)
    module.register_load_state_dict_post_hook(hook)
    torch.save(module, tmp_path / "a.pt")
    assert list(open_checkpoint(tmp_path / "a.pt").tensors.specs) == ["weight", "bias"]


def test_the_older_spectral_norm_is_refused(tmp_path: Path) -> None:
    """It has a hook of its own on the state dict."""
    module = nn.utils.spectral_norm(nn.Linear(2, 2))
    assert "has hooks that change its state dict" in str(refusal(module, tmp_path))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_parameters_without_numbers_yet_are_refused(tmp_path: Path) -> None:
    """A lazy module that never ran has no tensors: the error names the first."""
    error = refusal(nn.Sequential(nn.LazyLinear(2)), tmp_path)
    assert type(error) is CheckpointError
    assert "'0.weight' cannot be averaged: it is not a tensor but a " in str(error)
    assert "UninitializedParameter" in str(error)


def test_parametrizations_are_named_as_torch_names_them(tmp_path: Path) -> None:
    """torch pickles no parametrized module whole; its state dict is read under torch's names."""
    module = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        torch.save(module, tmp_path / "a.pt")
    torch.save(module.state_dict(), tmp_path / "b.pt")
    assert list(open_checkpoint(tmp_path / "b.pt").tensors.specs) == list(module.state_dict())


def test_an_object_that_is_no_module_is_refused(tmp_path: Path) -> None:
    """Another object says its class, and what to save instead."""
    error = refusal(Hook(), tmp_path)
    assert f"a pickled object of class {__name__}.Hook, which is no module of torch's" in str(error)


def inert(**changes: object) -> Inert:
    """Return what stands for a module, with changes of its state."""
    state = {"_parameters": {}, "_buffers": {}, "_modules": {}, "_non_persistent_buffers_set": []} | changes
    return Inert("Net", state=state)


def test_a_module_that_contains_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Endless names, and paths without number, are an error."""
    monkeypatch.setattr(whole_module, "MAX_TENSORS", 1000)
    module = inert()
    module.state["_modules"]["again"] = module
    with pytest.raises(CheckpointError, match="is nested without end"):
        module_tensors(module)
    doubled = inert(_parameters={"w": 1})
    for _ in range(60):
        doubled = inert(_modules={"a": doubled, "b": doubled})
    with pytest.raises(CheckpointError, match="is nested without end"):
        module_tensors(doubled)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_modules": {"inner": 3}}, "its module 'inner' is of no kind we know"),
        ({"_modules": {3: inert()}}, "its module at the top has no names in '_modules'"),
        ({"_parameters": {3: 1}}, "its module at the top has no names in '_parameters'"),
        ({"_modules": {"inner": inert(_buffers=[1])}}, "its module 'inner' has no names in '_buffers'"),
        ({"_parameters": {"a.b": 1}, "_modules": {"a": inert(_parameters={"b": 1})}}, "two tensors of the name 'a.b'"),
        ({"_parameters": {"a": 1}, "_buffers": {"a": 1}}, "two tensors of the name 'a'"),
        ({"_non_persistent_buffers_set": 3}, "does not list its buffers by name"),
    ],
)
def test_a_damaged_module_is_refused(changes: dict[str, object], message: str) -> None:
    """A state that is not a module's is an error with the module's place."""
    module = inert(**changes)
    assert is_module(module)
    with pytest.raises(CheckpointError) as caught:
        module_tensors(module)
    assert message in str(caught.value)
