"""Damaged files: a byte changed, lost or put in, or the end cut off, gives an error of ours or what the library reads.

`DAMAGE_EXAMPLES` in the environment sets how many examples are tried for each format; pytest's
`--hypothesis-show-statistics` then says what came of them.
"""

from __future__ import annotations

import json
import os
import pickle
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PosixPath
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint import metadata as dcp_metadata
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import CheckpointError, EmaError
from ema_cli.formats import open_checkpoint
from ema_cli.formats.pickles.unpickle import describe_storage, unpickle
from ema_cli.formats.pickles.values import KNOWN_CALLS, Inert, Name, PickleError, Storage
from ema_cli.formats.pickles.whole_module import module_tensors
from ema_cli.storage.location import location
from tests.formats.containers import DTYPE_NAMES
from tests.formats.reading import read_range, stored_bytes

EXAMPLES = int(os.environ.get("DAMAGE_EXAMPLES", 5 * settings.default.max_examples))
MAX_COMPARED = 1 << 26  # bytes; a damaged shape can say more than we want to read here

Tensors = Mapping[str, torch.Tensor]
Content = dict[str, tuple[str, tuple[int, ...], bytes]]  # name -> dtype, shape, bytes in C order


def small_tensors() -> dict[str, torch.Tensor]:
    """Return a few tensors, of three dtypes."""
    weight = torch.arange(6.0).reshape(2, 3)
    return {"layer.weight": weight, "layer.bias": torch.ones(2, dtype=torch.bfloat16), "counter": torch.tensor(3)}


def torch_tensors() -> dict[str, torch.Tensor]:
    """Return those and some that do not lie in order."""
    views = {"turned": torch.ones(2, 3).t(), "wave": torch.ones(2, dtype=torch.complex64).conj()}
    return small_tensors() | views


# ---- torch's readers, so that a damaged file is as harmless as those that are written here ----

MODULES = (nn.Module, nn.Linear, nn.BatchNorm1d, nn.Sequential)


class CarefulUnpickler(pickle.Unpickler):
    """Calls what the files here are made of, and nothing else."""

    KNOWN = {
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties",
            "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
        )
    } | {
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"), ("torch.serialization", "_get_layout"),
        ("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter"),
        ("torch", "Size"), ("collections", "OrderedDict"), ("__builtin__", "set"),
        (PosixPath.__module__, "PosixPath"),  # pathlib._local in Python 3.13
    } | {(kind.__module__, kind.__name__) for kind in MODULES}  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.KNOWN or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name}")


class CarefulPickle:
    """Takes the place of the module `pickle`."""

    Unpickler = CarefulUnpickler

    @staticmethod
    def load(file: Any, **keywords: Any) -> Any:
        """Read one pickle."""
        return CarefulUnpickler(file, **keywords).load()


def torch_load(path: Path) -> Any:
    """Return what torch reads: by its own safe unpickler, or else by the full language of pickles."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the source of a module's class
        try:
            return torch.load(path, weights_only=True)
        except Exception:  # noqa: BLE001 - a library may raise anything for a damaged file
            return torch.load(path, weights_only=False, pickle_module=CarefulPickle)


# ---- Formats: each writes a small checkpoint, and reads it with the library whose format it is ----


class Format:
    """A checkpoint on disk, and how its library reads it."""

    def write(self, folder: Path) -> Path:
        """Write the checkpoint into the folder; return the path to open."""
        raise NotImplementedError

    def files(self, folder: Path) -> list[Path]:
        """Return the files that may be damaged."""
        return sorted(path for path in folder.iterdir() if path.is_file())

    def load(self, path: Path) -> Tensors:
        """Return the weights that the library reads, or raise whatever it raises."""
        raise NotImplementedError

    def check(self, path: Path, checkpoint: Checkpoint, original: Checkpoint) -> None:
        """Check what was read beside the weights."""


class Safetensors(Format):
    """One file of safetensors."""

    def write(self, folder: Path) -> Path:
        save_file(small_tensors(), folder / "a.safetensors", metadata={"format": "pt"})
        return folder / "a.safetensors"

    def load(self, path: Path) -> Tensors:
        return load_file(path)


@dataclass
class TorchSave(Format):
    """One file of torch.save: a state dict alone, or with a clock beside it."""

    zipped: bool
    nested: bool

    def write(self, folder: Path) -> Path:
        saved = {"model": torch_tensors(), "step": 7, "epoch": torch.tensor(1)} if self.nested else torch_tensors()
        torch.save(saved, folder / "a.pt", _use_new_zipfile_serialization=self.zipped)
        return folder / "a.pt"

    def load(self, path: Path) -> Tensors:
        root = torch_load(path)
        return root.get("model", root)


@dataclass
class WholeModule(Format):
    """A pickled module with tied weights, batch statistics, and a buffer that is not part of its state dict."""

    zipped: bool

    def write(self, folder: Path) -> Path:
        tied = nn.Linear(2, 2)
        model = nn.Sequential(tied, nn.BatchNorm1d(2), nn.Sequential(tied))
        model.register_buffer("kept", torch.ones(2))
        model.register_buffer("passing", torch.ones(3), persistent=False)
        torch.save(model, folder / "a.pt", _use_new_zipfile_serialization=self.zipped)
        return folder / "a.pt"

    def load(self, path: Path) -> Tensors:
        return torch_load(path).state_dict()


@dataclass
class Shards(Format):
    """A folder with an index over two shards."""

    base: str
    suffix: str

    def write(self, folder: Path) -> Path:
        tensors, weight_map = small_tensors(), {}
        for number, names in enumerate((["layer.weight"], ["layer.bias", "counter"]), 1):
            shard = f"{self.base}-{number:05}-of-00002.{self.suffix}"
            part = {name: tensors[name] for name in names}
            if self.suffix == "bin":
                torch.save(part, folder / shard)
            else:
                save_file(part, folder / shard, metadata={"format": "pt"})
            weight_map.update(dict.fromkeys(names, shard))
        index = {"metadata": {"total_size": 36}, "weight_map": weight_map}
        (folder / f"{self.base}.{self.suffix}.index.json").write_text(json.dumps(index))
        return folder

    def load(self, path: Path) -> Tensors:
        index = json.loads((path / f"{self.base}.{self.suffix}.index.json").read_text("utf-8"))
        found: dict[str, torch.Tensor] = {}
        for shard in set(index["weight_map"].values()):
            part = torch_load(path / shard) if self.suffix == "bin" else load_file(path / shard)
            found.update(part)
        return {name: found[name] for name in index["weight_map"]}


class Cut(torch.Tensor):
    """A matrix that is saved in two pieces, as two ranks save it."""

    def __create_chunk_list__(self) -> list[dcp_metadata.ChunkStorageMetadata]:
        rows, columns = self.shape
        sides = [(0, rows // 2), (rows // 2, rows)]
        return [
            dcp_metadata.ChunkStorageMetadata(torch.Size((low, 0)), torch.Size((high - low, columns)))
            for low, high in sides
        ]

    def __create_write_items__(self, name: str, _: object) -> list[WriteItem]:
        properties = dcp_metadata.TensorProperties.create_from_tensor(self.as_subclass(torch.Tensor))
        return [
            WriteItem(
                dcp_metadata.MetadataIndex(name, chunk.offsets),
                WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk, properties, self.size()),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __get_tensor_shard__(self, index: dcp_metadata.MetadataIndex) -> torch.Tensor:
        half, whole = self.shape[0] // 2, self.as_subclass(torch.Tensor)
        return (whole[half:] if index.offset == torch.Size((half, 0)) else whole[:half]).clone()


class CarefulReader(dcp.FileSystemReader):
    """torch's reader, but for how it unpickles `.metadata`."""

    def read_metadata(self, *args: Any, **keywords: Any) -> dcp_metadata.Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            return CarefulUnpickler(file).load()


class TensorsOnly(_EmptyStateDictLoadPlanner):
    """torch's planner for whole folders, without what is no tensor, which it would unpickle freely."""

    def create_local_plan(self) -> LoadPlan:
        self.flat = dict(self.state_dict)
        plan = super().create_local_plan()
        plan.items = [item for item in plan.items if isinstance(self.flat[item.dest_index.fqn], torch.Tensor)]
        return plan

    def load_bytes(self, read_item: ReadItem, value: Any) -> None:
        raise AssertionError("planned away")


class DcpFolder(Format):
    """A folder of torch.distributed.checkpoint, a file for each piece, with a tensor in two of them."""

    def write(self, folder: Path) -> Path:
        model = small_tensors() | {"cut": torch.arange(15.0).reshape(5, 3).as_subclass(Cut)}
        saved = {"model": model, "step": 3, "optim": {"state": {"a": torch.ones(1)}}}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that it is one process which saves
            writer = dcp.FileSystemWriter(folder, single_file_per_rank=False, sync_files=False)
            dcp.save(saved, storage_writer=writer, no_dist=True)
        return folder

    def load(self, path: Path) -> Tensors:
        planner, reader = TensorsOnly(), CarefulReader(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, of how it reads
            _load_state_dict({}, storage_reader=reader, planner=planner, no_dist=True)
        paths = reader.read_metadata().planner_data
        model = {name: paths[name][1:] for name in planner.flat if paths[name][0] == "model"}
        return {".".join(map(str, rest)): planner.flat[name] for name, rest in model.items()}


class TrainerState(Format):
    """A folder of the Hugging Face Trainer, whose state is damaged."""

    def write(self, folder: Path) -> Path:
        save_file(small_tensors(), folder / "model.safetensors", metadata={"format": "pt"})
        state = {"epoch": 1.25, "global_step": 300, "log_history": [{"loss": float("nan"), "step": 300}],
                 "num_input_tokens_seen": 4096}  # fmt: skip
        (folder / "trainer_state.json").write_text(json.dumps(state, indent=2))
        return folder

    def files(self, folder: Path) -> list[Path]:
        return [folder / "trainer_state.json"]

    def load(self, path: Path) -> Tensors:
        return load_file(path / "model.safetensors")

    def check(self, path: Path, checkpoint: Checkpoint, original: Checkpoint) -> None:
        """The clocks are the numbers that stand there, exactly."""
        clocks = {unit.value: clock.value for unit, clock in checkpoint.progress.clocks.items()}
        if clocks == {unit.value: clock.value for unit, clock in original.progress.clocks.items()}:
            return
        text = (path / "trainer_state.json").read_text("utf-8")
        state = json.loads(text, parse_float=Fraction)
        names = {"global_step": "ba", "epoch": "ep", "num_input_tokens_seen": "tok"}
        expected = {unit: state[name] for name, unit in names.items() if name in state}
        assert clocks == {
            unit: value
            for unit, value in expected.items()
            if type(value) in (int, Fraction) and 0 <= value < 1 << 63 and (unit, value) != ("tok", 0)
        }


class Adapter(Format):
    """A folder of PEFT, whose configuration is damaged."""

    FIELDS = {"peft_type": "LORA", "r": 8, "lora_alpha": 16.5, "target_modules": ["q", "v"], "use_dora": False,
              "rank_pattern": {"q": 4}, "bias": None}  # fmt: skip

    def write(self, folder: Path) -> Path:
        save_file(small_tensors(), folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(self.FIELDS, indent=2))
        return folder

    def files(self, folder: Path) -> list[Path]:
        return [folder / "adapter_config.json"]

    def load(self, path: Path) -> Tensors:
        return load_file(path / "adapter_model.safetensors")

    def check(self, path: Path, checkpoint: Checkpoint, original: Checkpoint) -> None:
        """A setting that reads otherwise now differs from the original's, and no other does."""
        config = json.loads((path / "adapter_config.json").read_text("utf-8"))
        changed = {name for name, value in self.FIELDS.items() if config.get(name) != value}
        one, other = checkpoint.adapter.values, original.adapter.values
        assert changed == {name for name in self.FIELDS if one.get(name) != other.get(name)}


FORMATS: dict[str, Format] = {
    "safetensors": Safetensors(),
    "torch zip": TorchSave(zipped=True, nested=False),
    "torch zip, nested": TorchSave(zipped=True, nested=True),
    "torch legacy": TorchSave(zipped=False, nested=True),
    "whole module": WholeModule(zipped=True),
    "whole module, legacy": WholeModule(zipped=False),
    "safetensors shards": Shards("model", "safetensors"),
    "bin shards": Shards("pytorch_model", "bin"),
    "DCP": DcpFolder(),
    "trainer_state.json": TrainerState(),
    "adapter_config.json": Adapter(),
}


# ---- Damage ----


@dataclass(frozen=True)
class Damage:
    """One thing that goes wrong with one of some files, in numbers that fit any."""

    file: int
    at: int
    in_padding: bool  # much of a file of torch's is zeros, in which little can go wrong
    kind: str
    value: bytes

    def do(self, whole: bytes) -> bytes:
        """Return the bytes with the damage done to them."""
        places = range(len(whole)) if self.in_padding else [place for place, byte in enumerate(whole) if byte]
        at = places[self.at % len(places)]
        match self.kind:
            case "change":
                return whole[:at] + self.value[:1] + whole[at + 1 :]
            case "flip":
                return whole[:at] + bytes([whole[at] ^ 1 << self.value[0] % 8]) + whole[at + 1 :]
            case "insert":
                return whole[:at] + self.value + whole[at:]
            case "remove":
                return whole[:at] + whole[at + 1 :]
        return whole[:at]


DAMAGES = st.builds(
    Damage,
    file=st.integers(0, 255),
    at=st.integers(0, (1 << 20) - 1),
    in_padding=st.booleans(),
    kind=st.sampled_from(["change", "flip", "insert", "remove", "cut"]),
    value=st.binary(min_size=1, max_size=2),
)


def content(checkpoint: Checkpoint) -> Content:
    """Return what we read; no bytes where there are too many."""
    weights = checkpoint.tensors
    return {
        name: (
            spec.dtype.name,
            spec.shape,
            read_range(weights, name, 0, spec.nbytes) if checkpoint.nbytes < MAX_COMPARED else b"",
        )
        for name, spec in weights.specs.items()
    }


def library_content(tensors: Tensors, *, with_bytes: bool) -> Content:
    """Return what the library reads, in the same form."""
    names = DTYPE_NAMES | {torch.complex128: "C128", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"}
    return {
        name: (
            names.get(tensor.dtype, str(tensor.dtype)),
            tuple(tensor.shape),
            stored_bytes(tensor) if with_bytes else b"",
        )
        for name, tensor in tensors.items()
        if isinstance(tensor, torch.Tensor)
    }


@dataclass(frozen=True)
class Good:
    """A checkpoint before the damage."""

    format: Format
    path: Path
    files: Mapping[Path, bytes]
    checkpoint: Checkpoint
    content: Content


@pytest.fixture(scope="module", params=FORMATS)
def good(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Good:
    """A good checkpoint of each format, read by us as by its library."""
    form = FORMATS[request.param]
    folder = tmp_path_factory.mktemp("damage")
    path = form.write(folder)
    checkpoint = open_checkpoint(path)
    found = content(checkpoint)
    assert found == library_content(form.load(path), with_bytes=True)
    return Good(form, path, {file: file.read_bytes() for file in form.files(folder)}, checkpoint, found)


@pytest.mark.slow
@settings(
    deadline=None,
    max_examples=EXAMPLES,
    phases=[phase for phase in Phase if phase is not Phase.explain],  # it says no more than the bytes do
    suppress_health_check=[HealthCheck.too_slow],
)
@given(damage=DAMAGES)
def test_damage_gives_an_error_or_what_the_library_reads(good: Good, damage: Damage) -> None:
    """Damage anywhere: an error of ours, or exactly the tensors that the library reads; the old ones if it refuses."""
    file = sorted(good.files)[damage.file % len(good.files)]
    file.write_bytes(damage.do(good.files[file]))
    try:
        event(outcome(good))
    finally:
        file.write_bytes(good.files[file])


def outcome(good: Good) -> str:
    """Check what we make of the damaged checkpoint, and say in a few words what that is."""
    try:
        checkpoint = open_checkpoint(good.path)
        found = content(checkpoint)
    except EmaError:
        return "an error"
    good.format.check(good.path, checkpoint, good.checkpoint)
    if found == good.content:
        return "the original tensors"
    try:
        expected = library_content(good.format.load(good.path), with_bytes=checkpoint.nbytes < MAX_COMPARED)
    except Exception as error:  # a library may raise anything for a damaged file
        raise AssertionError(f"read, but the library refuses it: {error}") from error
    assert found == expected
    return "what the library reads"


# ---- What damage, reasoning and fuzzing found ----


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
