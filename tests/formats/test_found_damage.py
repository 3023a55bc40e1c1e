"""Damage that was once read as something else, or not refused in words: each as a file of its own."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import metadata as dcp_metadata

from ema_cli.errors import CheckpointError, EmaError
from ema_cli.formats import open_checkpoint
from ema_cli.formats.pickles.unpickle import describe_storage, unpickle
from ema_cli.formats.pickles.values import KNOWN_CALLS, Inert, Name, PickleError, Storage
from ema_cli.formats.pickles.whole_module import module_tensors
from ema_cli.storage.location import location
from tests.formats.damaged import CarefulReader, DcpFolder
from tests.formats.reading import read_range, stored_bytes


@pytest.mark.parametrize("key", [b"conj", b"neg"])
def test_a_lazy_bit_that_is_written_as_false(key: bytes, tmp_path: Path) -> None:
    """torch takes a lazy bit for set wherever it is named: a file that names it as false is read alike, or refused."""
    path = tmp_path / "a.pt"
    wave = torch.ones(3, dtype=torch.complex64)
    torch.save({"wave": wave.conj() if key == b"conj" else torch._neg_view(wave)}, path)
    whole = bytearray(path.read_bytes())
    whole[whole.index(b"\x88", whole.index(key))] = 0x89  # True becomes False
    path.write_bytes(whole)
    try:
        weights = open_checkpoint(path).tensors
    except EmaError:
        return
    assert read_range(weights, "wave", 0, 24) == stored_bytes(torch.load(path, weights_only=True)["wave"])


def module_state(**changes: object) -> dict[str, object]:
    """Return the state of a module with a parameter and a buffer, as the unpickler gives it."""
    state: dict[str, object] = {"_parameters": {"weight": 1}, "_buffers": {"mask": 2}, "_modules": {}}
    return state | changes


def test_a_module_whose_passing_buffers_are_no_names() -> None:
    """What stands where a module lists its non-persistent buffers may be anything; a number there was a TypeError."""
    for damaged in (7, Inert("a"), [1], "mask", {"mask": 1}):
        state = module_state(_non_persistent_buffers_set=damaged)
        with pytest.raises(CheckpointError, match="does not list its buffers by name"):
            module_tensors(Inert("Module", state=state))


def test_only_buffers_are_not_persistent() -> None:
    """A parameter in the list of non-persistent buffers is in the state dict all the same; it was left out."""
    state = module_state(_non_persistent_buffers_set=["weight", "mask"])
    assert module_tensors(Inert("Module", state=state)) == {"weight": 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("leaf", "names"),
    [
        (module_state(_parameters=dict.fromkeys(map(str, range(20_000)))), ("a", "b")),
        (module_state(_non_persistent_buffers_set=list(map(str, range(20_000)))), ("a", "b")),
        (module_state(), ("a" * 100_000, "b" * 100_000)),
    ],
    ids=["empty places", "names of passing buffers", "long names"],
)
def test_a_module_that_is_there_many_times(leaf: dict[str, object], names: tuple[str, str]) -> None:
    """Two places for each module lead to half a million in a small file: what each holds was walked for minutes."""
    module = Inert("Module", state=leaf)
    for _ in range(150):
        module = Inert("Module", state=module_state(_modules=dict.fromkeys(names, module)))
    begin = time.monotonic()
    with pytest.raises(CheckpointError, match="nested without end"):
        module_tensors(module)
    assert time.monotonic() - begin < 30


@pytest.mark.parametrize("key", ["_parameters", "_buffers"])
def test_a_module_without_one_of_its_dicts(key: str) -> None:
    """A module whose parameters or buffers are under another name is refused; it was read without them."""
    state = module_state()
    state[f"{key}x"] = state.pop(key)
    with pytest.raises(CheckpointError, match=f"no names in '{key}'"):
        module_tensors(Inert("Module", state=state))


def test_a_storage_of_more_elements_than_any_file_holds() -> None:
    """A count of thousands of digits is no storage's; to say so was a ValueError, as Python prints no such number."""
    for count in (1 << 20_000, 1 << 60, -1):
        with pytest.raises(PickleError, match="no tensor storage"):
            describe_storage(("storage", Name("torch.FloatStorage"), "0", "cpu", count))


def test_a_tensor_with_too_many_arguments() -> None:
    """A recipe for a tensor with arguments that torch does not take is damaged; the further ones were passed over."""
    storage = Storage("float32", "0", 1)
    for name, arguments in {
        "_rebuild_tensor_v2": (storage, 0, (1,), (1,), False, {}, None),
        "_rebuild_tensor_v3": (storage, 0, (1,), (1,), False, {}, Name("torch.float32"), None),
        "_rebuild_parameter": (storage, False, {}, None),
    }.items():
        call = KNOWN_CALLS[f"torch._utils.{name}"]
        call(*arguments)
        with pytest.raises(TypeError, match="positional argument"):
            call(*arguments, 0)


def test_a_tensor_whose_lazy_bits_are_no_dict() -> None:
    """What stands where a tensor's lazy bits belong is a dict or nothing, for torch too; it was passed over."""
    arguments = (Storage("complex64", "0", 1), 0, (1,), (1,), False, {})
    with pytest.raises(PickleError, match="lazy bits"):
        KNOWN_CALLS["torch._utils._rebuild_tensor_v2"](*arguments, ("conj",))


def test_a_tensor_whose_arguments_were_shifted() -> None:
    """torch refuses a gradient's mark that is no bool, or hooks that are no dict; lazy bits were read as hooks."""
    storage, shifted = Storage("complex64", "0", 1), {"conj": True}
    for name, arguments in {
        "_rebuild_tensor_v2": (storage, 0, (1,), (1,), {}, shifted),
        "_rebuild_tensor_v3": (storage, 0, (1,), (1,), False, 1, Name("torch.complex64")),
        "_rebuild_parameter": (storage, {}, {}),
        "_rebuild_parameter_with_state": (storage, True, False, {}),
    }.items():
        with pytest.raises(PickleError, match="not those that torch gives"):
            KNOWN_CALLS[f"torch._utils.{name}"](*arguments)


def test_a_dict_as_a_key(tmp_path: Path) -> None:
    """A dict whose key is a dict is not Python's; a placeholder stood for the key, and the rest was read."""
    good, mark = pickle.dumps({"key": 1}, protocol=2), b"X\x03\x00\x00\x00keyq\x01"
    (tmp_path / "a.pkl").write_bytes(good.replace(mark, b"}"))
    assert mark in good
    with pytest.raises(PickleError, match="a dict as a key"):
        unpickle(location(tmp_path / "a.pkl").open())


def test_a_pickle_that_ends_in_the_middle_of_a_value(tmp_path: Path) -> None:
    """What is left over at the end stands for a lost byte; the innermost dict was taken for all that was saved."""
    good = pickle.dumps({"model": {"weight": 1}, "step": 2}, protocol=2)
    assert good.endswith(b"u.")
    for name, damaged in {"mark": good[:-2] + b".", "value": good[:2] + b"N" + good[2:]}.items():
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(PickleError, match="in the middle of a value"):
            unpickle(location(tmp_path / name).open())


def endless() -> list[object]:
    """Return lists of a few lines that take all memory when printed."""
    found: list[object] = []
    for _ in range(80):
        found = [found, found]
    return found


def storage_info(metadata: dcp_metadata.Metadata) -> Any:
    """Return the record of the first tensor."""
    return next(info for key, info in metadata.storage_data.items() if key.fqn == "model.counter")


METADATA_DAMAGE: dict[str, tuple[Callable[[Any], object], str]] = {
    # To print what stands where a file's name or a path belongs was a ValueError, or took for ever.
    "file name of 6000 digits": (lambda m: setattr(storage_info(m), "relative_path", 1 << 20_000), "type int, which"),
    "file name without end": (lambda m: setattr(storage_info(m), "relative_path", endless()), "type list, which"),
    "path without end": (lambda m: m.planner_data.update({"model.counter": ("model", endless())}), "stood elsewhere"),
    # Was a name in the output, under which torch's own reader of whole folders does not find the tensor.
    "path of another name": (lambda m: m.planner_data.update({"model.counter": ("model", "b")}), "stood elsewhere"),
    # Was left out, for its name is not below 'model' as those of the others are.
    "tensor without a path": (lambda m: m.planner_data.pop("model.counter"), "stood elsewhere"),
    "path that is none": (lambda m: m.planner_data.update({"model.counter": 3}), "stood elsewhere"),
    # Was a UnicodeEncodeError while the output was laid out.
    "name that is not text": (
        lambda m: (
            m.state_dict_metadata.update({"\ud800": m.state_dict_metadata["model.counter"]}),
            m.planner_data.update({"\ud800": ("\ud800",)}),
        ),
        "not valid text",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", METADATA_DAMAGE)
def test_metadata_that_says_what_cannot_be(kind: str, tmp_path: Path) -> None:
    """A `.metadata` with a file, a path or a name that torch cannot have written is an error that says so."""
    change, message = METADATA_DAMAGE[kind]
    path = DcpFolder().write(tmp_path)
    metadata = CarefulReader(path).read_metadata()
    change(metadata)
    (path / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)
