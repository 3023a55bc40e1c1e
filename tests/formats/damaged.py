"""Checkpoints of every format, damage to them, and what their own libraries read of it without running any code."""

from __future__ import annotations

import importlib
import io
import json
import pickle
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint import metadata as dcp_metadata
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset

from ema_cli.checkpoint import Checkpoint
from ema_cli.formats.options import ReadOptions
from tests.formats.arrays.flax_files import packed
from tests.formats.careful_pickles import CarefulUnpickler, torch_load
from tests.formats.containers import DTYPE_NAMES
from tests.formats.dcp_folders import Pieces
from tests.formats.pieces.make import halves, write_pieces
from tests.formats.ranks.flattened import save_flat
from tests.formats.ranks.saves import Cut as CutTensor
from tests.formats.ranks.saves import save_ranks
from tests.formats.reading import read_range, stored_bytes
from tests.formats.zero.make import Saved

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


class Format:
    """A checkpoint on disk, and how its library reads it."""

    options = ReadOptions()  # with which we read it

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


class RankShards(Format):
    """A folder in which two ranks saved their halves of a matrix and of a vector."""

    def write(self, folder: Path) -> Path:
        matrix, vector = torch.arange(12.0).reshape(3, 4), torch.ones(3, dtype=torch.bfloat16)
        return write_pieces(folder, {"layer.weight": (matrix, halves(matrix, 1)), "bias": (vector, halves(vector, 0))})

    def load(self, path: Path) -> Tensors:
        """Put the pieces together by their offsets, each element once."""
        whole: dict[str, torch.Tensor] = {}
        covered: dict[str, torch.Tensor] = {}
        pieces = []
        for file in sorted(path.glob("*.safetensors")):
            with safe_open(file, "pt") as opened:
                info = json.loads(opened.metadata()["DCP_SHARDING_INFO"])
                pieces += [(n, opened.get_tensor(n), info[n]["saved_offsets"]) for n in opened.keys()]  # noqa: SIM118
        for name in {name for name, _, _ in pieces}:
            own = [(piece, at) for other, piece, at in pieces if other == name]
            ends = [[a + n for a, n in zip(at, piece.shape, strict=True)] for piece, at in own]
            shape = [max(sides) for sides in zip(*ends, strict=True)]
            whole[name], covered[name] = torch.zeros(shape, dtype=own[0][0].dtype), torch.zeros(shape)
            for piece, at in own:
                assert piece.dtype == whole[name].dtype
                ranges = tuple(slice(a, a + n) for a, n in zip(at, piece.shape, strict=True))
                whole[name][ranges] = piece
                covered[name][ranges] += 1
            assert bool((covered[name] == 1).all())
        return whole


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


def loaded_by_torch(path: Path) -> tuple[TensorsOnly, CarefulReader]:
    """Return what holds every tensor of a folder by its flat name, `flat`, and the reader that read them."""
    planner, reader = TensorsOnly(), CarefulReader(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of how it reads
        _load_state_dict({}, storage_reader=reader, planner=planner, no_dist=True)
    return planner, reader


class DcpFolder(Format):
    """A folder of torch.distributed.checkpoint, a file for each piece, with a tensor in two of them."""

    def write(self, folder: Path) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that it is one process which saves
            writer = dcp.FileSystemWriter(folder, single_file_per_rank=False, sync_files=False)
            dcp.save(self.state(), storage_writer=writer, no_dist=True)
        return folder

    def model(self) -> dict[str, torch.Tensor]:
        """Return the model."""
        return small_tensors() | {"cut": torch.arange(15.0).reshape(5, 3).as_subclass(Cut)}

    def state(self) -> dict[str, Any]:
        """Return all that is saved."""
        return {"model": self.model(), "step": 3, "optim": {"state": {"a": torch.ones(1)}}}

    def load(self, path: Path) -> Tensors:
        planner, reader = loaded_by_torch(path)
        paths = reader.read_metadata().planner_data
        model = {name: paths[name][1:] for name in planner.flat if paths[name][0] == "model"}
        return {".".join(map(str, rest)): planner.flat[name] for name, rest in model.items()}


class ZeroFolder(Format):
    """A folder of DeepSpeed's with what two ranks of ZeRO stage 3 save."""

    def write(self, folder: Path) -> Path:
        weights = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(3)}
        frozen, buffers = {"still": torch.ones(3, dtype=torch.bfloat16)}, {"counter": torch.tensor(3)}
        saved = Saved(groups=[weights], frozen=frozen, buffers=buffers, shared={"head.weight": "layer.weight"})
        return saved.write(folder)

    def load(self, path: Path) -> Tensors:
        """Put the parts together as DeepSpeed's zero_to_fp32.py does."""
        models = [torch_load(file) for file in sorted(path.glob("*_model_states.pt"))]
        optimizers = [torch_load(file)["optimizer_state_dict"] for file in sorted(path.glob("*_optim_states.pt"))]
        ranks = optimizers[0]["partition_count"]
        assert ranks == len(optimizers)
        first = models[0]
        tensors = {name: first["module"][name] for name in first["buffer_names"] if name in first["module"]}
        for name, shape in first["frozen_param_shapes"].items():
            whole = torch.cat([model["frozen_param_fragments"][name] for model in models])
            tensors[name] = whole.narrow(0, 0, shape.numel()).view(shape)
        rows = [torch.cat(states["fp32_flat_groups"]) for states in optimizers]
        at = 0
        for name, shape in {name: shape for group in first["param_shapes"] for name, shape in group.items()}.items():
            part = -(-shape.numel() // ranks)
            tensors[name] = torch.cat([row[at : at + part] for row in rows])[: shape.numel()].view(shape)
            at += part
        assert at * ranks == len(rows[0]) * ranks
        tied = {name: tensors[kept] for name, kept in first["shared_params"].items() if kept in tensors}
        return {**tensors, **tied}


class ZeroMasters(Format):
    """A folder of DeepSpeed's with what two ranks of ZeRO stage 2 save, of which the float32 weights are taken."""

    options = ReadOptions(masters=True)

    def write(self, folder: Path) -> Path:
        weights = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(3)}
        frozen, buffers = {"still": torch.ones(3, dtype=torch.bfloat16)}, {"counter": torch.tensor(3)}
        return Saved(stage=2, groups=[weights], frozen=frozen, buffers=buffers).write(folder)

    def load(self, path: Path) -> Tensors:
        """Put the rows together as DeepSpeed's zero_to_fp32.py does; what does not train is in the model."""
        (model,) = [torch_load(file) for file in path.glob("*_model_states.pt")]
        states = [torch_load(file)["optimizer_state_dict"] for file in sorted(path.glob("*_optim_states.pt"))]
        ranks = max(states[0]["partition_count"])
        assert ranks == len(states)
        tensors, aligned = dict(model["module"]), 2 * ranks
        for number, group in enumerate(model["param_shapes"]):
            row, at = torch.cat([each["single_partition_of_fp32_groups"][number] for each in states]), 0
            for name, shape in group.items():
                tensors[name] = row[at : at + shape.numel()].view(shape)
                at += shape.numel()
            assert -(-at // aligned) == -(-len(row) // aligned)
        return tensors


@dataclass
class UniversalFolder(Format):
    """A folder of DeepSpeed's universal format, made of what two ranks saved."""

    stage: int

    def write(self, folder: Path) -> Path:
        weights = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(3)}
        frozen, buffers = {"still": torch.ones(3, dtype=torch.bfloat16)}, {"counter": torch.tensor(3)}
        shared = {"head.weight": "layer.weight"}
        saved = Saved(stage=self.stage, groups=[weights], frozen=frozen, buffers=buffers, shared=shared)
        return saved.write_universal(folder)

    def files(self, folder: Path) -> list[Path]:
        return sorted(path for path in folder.rglob("*") if path.is_file())

    def load(self, path: Path) -> Tensors:
        """Take each parameter from its file, as DeepSpeed does; what has none from the model states."""
        models = [torch_load(file) for file in sorted(path.glob("*_model_states.pt"))]
        first = models[0]
        tensors = dict(first["module"])
        if self.stage == 3:
            tensors = {name: tensors[name] for name in first["buffer_names"] if name in tensors}
            for name, shape in first["frozen_param_shapes"].items():
                whole = torch.cat([model["frozen_param_fragments"][name] for model in models])
                tensors[name] = whole.narrow(0, 0, shape.numel()).view(shape)
        for name, shape in {name: shape for group in first["param_shapes"] for name, shape in group.items()}.items():
            stored = torch_load(path / "zero" / name / "fp32.pt")
            value = stored["param"] if isinstance(stored, dict) else stored
            assert value.shape == shape or value.shape == (shape.numel(),)
            tensors[name] = value.view(shape)
        tied = {name: tensors[kept] for name, kept in first.get("shared_params", {}).items() if kept in tensors}
        return {**tensors, **tied}


@dataclass
class CutUniversal(Format):
    """A folder of DeepSpeed's universal format, made of what two ranks saved that cut tensors between them."""

    maps: bool

    def write(self, folder: Path) -> Path:
        weights = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(4)}
        frozen, buffers = {"still": torch.ones(4, dtype=torch.bfloat16)}, {"counter": torch.tensor(3)}
        cuts = {"layer.bias": "rows"}
        saved = Saved(stage=2, groups=[weights], frozen=frozen, buffers=buffers, cuts=cuts)
        return saved.write_universal(folder, 2, maps=self.maps)

    def files(self, folder: Path) -> list[Path]:
        return sorted(path for path in folder.rglob("*") if path.is_file())

    def load(self, path: Path) -> Tensors:
        """Take each parameter from its file, as DeepSpeed does; what does not train is the same in both ranks."""
        first, other = (torch_load(file) for file in sorted(path.glob("*_model_states.pt")))
        trained = {name for group in first["param_shapes"] for name in group}
        tensors = {name: value for name, value in first["module"].items() if name not in trained}
        assert all(name in other["module"] for name in tensors)
        return {**tensors, **{name: torch_load(path / "zero" / name / "fp32.pt")["param"] for name in trained}}


@dataclass
class RankFiles(Format):
    """A folder with what two ranks save, who share the rows of tensors."""

    zipped: bool

    def write(self, folder: Path) -> Path:
        matrix = torch.arange(12.0).reshape(3, 4)
        state = {"layer.weight": CutTensor(matrix, [Shard(0)]), "layer.bias": CutTensor(torch.ones(2), [Shard(0)]),
                 "scale": CutTensor(torch.ones(2), [Replicate()]), "counter": torch.tensor(3)}  # fmt: skip
        return save_ranks(folder, state, {"fsdp": 2}, zipped=self.zipped)

    def rank_files(self, path: Path) -> list[Path]:
        """Return the files of the ranks, in their order."""
        return sorted(path.iterdir())

    def load(self, path: Path) -> Tensors:
        """Put the parts at the places that torch computes for them, each element once."""
        ranks = [torch_load(file) for file in self.rank_files(path)]
        whole: dict[str, torch.Tensor] = {}
        for name in {name: None for state in ranks for name in state}:
            own = [state[name] for state in ranks if name in state]
            parts = [value for value in own if isinstance(value, DTensor)]
            if not parts:
                whole[name] = own[0]
                continue
            shape, local = parts[0].shape, parts[0]._local_tensor
            whole[name], covered = torch.zeros(shape, dtype=local.dtype), torch.zeros(shape)
            assert len(parts) == len(own)
            for part in parts:
                mesh = part._spec.mesh
                at = mesh._coordinate_on_dim
                size, offset = _compute_local_shape_and_global_offset(shape, mesh.shape, at, part._spec.placements)
                assert part.shape == shape
                if 0 in size:
                    continue
                assert (part._local_tensor.shape, part._local_tensor.dtype) == (size, local.dtype)
                place = tuple(slice(first, first + length) for first, length in zip(offset, size, strict=True))
                if not bool(covered[place].all()):  # what several ranks have is the first one's
                    assert not bool(covered[place].any())
                    whole[name][place] = part._local_tensor
                    covered[place] = 1
            assert bool(covered.all())
        return whole


class FlatFiles(Format):
    """A checkpoint of OLMo's, with what FSDP flattened at two ranks."""

    def write(self, folder: Path) -> Path:
        return save_flat(folder, {"": {"a": torch.arange(6.0).reshape(2, 3)}, "b": {"c": torch.ones(3).bfloat16()}}, 2)

    def files(self, folder: Path) -> list[Path]:
        return sorted((folder / "model").iterdir())

    def load(self, path: Path) -> Tensors:
        """Put the parts at the places that the files say, as OLMo does, each element once."""
        whole: dict[str, torch.Tensor] = {}
        covered: dict[str, torch.Tensor] = {}
        for file in self.files(path):
            for module in torch_load(file)["modules"]:
                for handle in module["handles"]:
                    known = [handle[f"flat_param.{key}"] for key in ("_fqns", "_shapes", "_shard_param_infos")]
                    for name, shape, info in zip(*known, strict=True):
                        name = f"{module['name']}.{name}" if module["name"] else name
                        data = handle["flat_param.data"]
                        tensor = whole.setdefault(name, torch.zeros(shape, dtype=data.dtype))
                        assert (tensor.shape, tensor.dtype) == (shape, data.dtype)
                        seen = covered.setdefault(name, torch.zeros(tensor.numel()))
                        if info.in_shard:
                            place = slice(info.intra_param_start_idx, info.intra_param_end_idx + 1)
                            part = data[info.offset_in_shard : info.offset_in_shard + info.numel_in_shard]
                            assert len(part) == len(seen[place]) == info.numel_in_shard
                            tensor.view(-1)[place] = part
                            seen[place] += 1
        assert all(bool((seen == 1).all()) for seen in covered.values())
        return whole


class Items(RankFiles):
    """A folder of torch_checkpointing's: the model's files of two ranks, and their clock in another item's."""

    def write(self, folder: Path) -> Path:
        matrix = torch.arange(12.0).reshape(3, 4)
        state = {"layer.weight": CutTensor(matrix, [Shard(0)]), "scale": CutTensor(torch.ones(2), [Replicate()])}
        for item, value in {"model": state, "train_state": {"step": 64}}.items():
            save_ranks(folder, value, {"fsdp": 2}, name=item + "_{rank}.pt", zipped=self.zipped)
        (folder / "metadata.pkl").write_bytes(pickle.dumps({"world_size": 2, "metadata": {}}, 4))
        return folder

    def rank_files(self, path: Path) -> list[Path]:
        return sorted(path.glob("model_*.pt"))

    def check(self, path: Path, checkpoint: Checkpoint, original: Checkpoint) -> None:
        """The clock is the number that stands in the files of both ranks; where none of them says it, there is none."""
        clocks = {unit: clock.value for unit, clock in checkpoint.progress.clocks.items()}
        if clocks == {unit: clock.value for unit, clock in original.progress.clocks.items()}:
            return
        states = [torch_load(file) for file in sorted(path.glob("train_state_*.pt"))]
        steps = {state["step"] for state in states if isinstance(state, dict) and "step" in state}
        assert {*clocks.values()} <= {step for step in steps if type(step) is int and step >= 0}


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


@dataclass
class Npz(Format):
    """An archive of numpy's."""

    save: Callable[..., None]

    def write(self, folder: Path) -> Path:
        self.save(folder / "a.npz", weight=np.arange(6.0, dtype="f4").reshape(2, 3), bias=np.ones(2, "f2"), step=3)
        return folder / "a.npz"

    def load(self, path: Path) -> Tensors:
        """Read what numpy reads, but for the checksums that Python looks at, and what follows the arrays."""
        tensors = {}
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                info.CRC = None  # type: ignore[assignment]
                with archive.open(info) as file:
                    tensors[info.filename.removesuffix(".npy")] = torch.from_numpy(np.lib.format.read_array(file))
        return tensors


class StableBaselines(Format):
    """An archive of stable-baselines3, with torch's archive in it."""

    def write(self, folder: Path) -> Path:
        out = io.BytesIO()
        torch.save(small_tensors(), out)
        with zipfile.ZipFile(folder / "a.zip", "w") as archive:
            archive.writestr("data", '{"num_timesteps": 64}')
            archive.writestr("policy.pth", out.getvalue())
        return folder / "a.zip"

    def load(self, path: Path) -> Tensors:
        with zipfile.ZipFile(path) as archive:
            archive.getinfo("policy.pth").CRC = None  # type: ignore[assignment]
            return unpacked(path, archive.read("policy.pth"))


class Nemo(Format):
    """An archive of NeMo's, with torch's archive in it."""

    def write(self, folder: Path) -> Path:
        torch.save(small_tensors(), folder / "model_weights.ckpt")
        with tarfile.open(folder / "a.nemo", "w:") as archive:
            archive.add(folder / "model_weights.ckpt", "./model_weights.ckpt")
        (folder / "model_weights.ckpt").unlink()
        return folder / "a.nemo"

    def load(self, path: Path) -> Tensors:
        with tarfile.open(path, "r:") as archive:
            names = [info.name for info in archive if info.name.removeprefix("./") == "model_weights.ckpt"]
            file = archive.extractfile(names[0])
            assert file is not None
            return unpacked(path, file.read())


def unpacked(path: Path, data: bytes) -> Tensors:
    """Return what torch saved into a member of an archive."""
    inner = path.with_name("inner")
    inner.write_bytes(data)
    try:
        return torch_load(inner)
    finally:
        inner.unlink()


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler of numpy's arrays alone."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy._core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name}")


class Pdparams(Format):
    """A pickle of arrays, as Paddle writes it."""

    def write(self, folder: Path) -> Path:
        arrays = {"weight": np.arange(6.0, dtype="f4").reshape(2, 3), "half": np.ones(2, "u2"), "count": np.array(3)}
        (folder / "a.pdparams").write_bytes(pickle.dumps({**arrays, "turned": np.asfortranarray(np.ones((2, 3)))}, 4))
        return folder / "a.pdparams"

    def load(self, path: Path) -> Tensors:
        with path.open("rb") as file:
            arrays = ArrayUnpickler(file).load()
        tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        return {name: t.view(torch.bfloat16) if t.dtype == torch.uint16 else t for name, t in tensors.items()}


class Flax(Format):
    """A file of Flax's, with an array in chunks."""

    def write(self, folder: Path) -> Path:
        kernel = np.arange(6.0, dtype="f4").reshape(2, 3)
        saved = {"layer": {"kernel": kernel, "bias": np.ones(3, "f2")}, "scale": np.float32(2)}
        (folder / "a.msgpack").write_bytes(packed(saved, chunk=16))
        return folder / "a.msgpack"

    def load(self, path: Path) -> Tensors:
        """Unpack as Flax does: an extension holds shape, type and bytes; chunks are joined."""
        tree = unpackb(path.read_bytes(), ext_hook=self._array)
        return {".".join(keys): value for keys, value in self._leaves(tree, ())}

    def _array(self, code: int, data: bytes) -> Any:
        assert code in (1, 3)  # 2 is a complex number, of which there are none
        shape, name, content = unpackb(data)
        array = np.frombuffer(content, dtype=np.dtype(name), count=-1).reshape(shape, order="C")
        return array if code == 1 else array[()]

    def _leaves(self, tree: dict[str, Any], before: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
        for key, value in tree.items():
            if isinstance(value, dict) and "__msgpack_chunked_array__" in value:
                shape, chunks = (dict_items(value[part]) for part in ("shape", "chunks"))
                yield (*before, key), torch.from_numpy(np.concatenate(chunks).reshape(shape))
            elif isinstance(value, dict):
                yield from self._leaves(value, (*before, key))
            elif isinstance(value, np.ndarray | np.generic):
                yield (*before, key), torch.from_numpy(np.array(value))


def unpackb(data: bytes, **options: Any) -> Any:
    """Return what the library unpacks, where it is installed."""
    return pytest.importorskip("msgpack").unpackb(data, raw=False, strict_map_key=False, **options)


def dict_items(numbered: dict[str, Any]) -> list[Any]:
    """Return a list that Flax stored as a dict with numbers for keys."""
    return [numbered[str(number)] for number in range(len(numbered))]


class Orbax(Format):
    """An item of Orbax's, whose tree and arrays are damaged."""

    def write(self, folder: Path) -> Path:
        kernel = np.arange(6.0, dtype="f4").reshape(2, 3)
        arrays = {("params", "layer", "kernel"): kernel, ("params", "bias"): np.ones(3, "f2")}
        return Path(orbax_files().write_item(folder / "item", arrays))

    def files(self, folder: Path) -> list[Path]:
        return sorted(path for path in folder.rglob("*") if path.is_file())

    def load(self, path: Path) -> Tensors:
        """Open by tensorstore what the tree names."""
        tree = json.loads((path / "_METADATA").read_text("utf-8"))
        tensors = {}
        for entry in tree["tree_metadata"].values():
            keys = [part["key"] for part in entry["key_metadata"]]
            kept = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{path}/"}, "path": f"{'.'.join(keys)}/"}
            array = orbax_files().ts.open({"driver": "zarr", "kvstore": kept}).result().read().result()
            if keys[0] == "params":
                tensors[".".join(keys[1:])] = torch.from_numpy(array)
        return tensors


def orbax_files() -> Any:
    """Return what writes them, where tensorstore is installed."""
    return importlib.import_module("tests.formats.arrays.orbax_files")


class MegatronFolder(DcpFolder):
    """A folder of Megatron's, of which the optimizer's float32 weights are taken."""

    options = ReadOptions(masters=True)
    MASTER = "optimizer.state.param."

    def write(self, folder: Path) -> Path:
        pieces, weight = Pieces(folder), torch.arange(6.0).reshape(2, 3)
        sides = [((0, 0), (2, 2)), ((0, 2), (2, 1))]
        pieces.add("layer.weight", weight.bfloat16(), sides)
        pieces.add(f"{self.MASTER}layer.weight", weight, sides[::-1])
        pieces.add("optimizer.state.exp_avg.layer.weight", weight, sides)
        pieces.add_item("common_state/shard_0_1", {"iteration": 3})
        pieces.write()
        return folder

    def load(self, path: Path) -> Tensors:
        planner, _ = loaded_by_torch(path)
        model = {
            name: value for name, value in planner.flat.items() if not name.startswith(("optimizer.", "common_state"))
        }
        return {name: planner.flat.get(f"{self.MASTER}{name}", value) for name, value in model.items()}


class MegatronFsdp(DcpFolder):
    """A folder of Megatron's `fsdp_dtensor`: names begin with `module.`, and the clock lies among the shards."""

    def state(self) -> dict[str, Any]:
        model = {f"module.{name}": value for name, value in self.model().items()}
        return {"model": model, "iteration": 3, "checkpoint_version": 3.0, "optimizer": {"state": torch.ones(1)}}

    def load(self, path: Path) -> Tensors:
        return {name.removeprefix("module."): value for name, value in super().load(path).items()}


FORMATS: dict[str, Format] = {
    "safetensors": Safetensors(),
    "torch zip": TorchSave(zipped=True, nested=False),
    "torch zip, nested": TorchSave(zipped=True, nested=True),
    "torch legacy": TorchSave(zipped=False, nested=True),
    "whole module": WholeModule(zipped=True),
    "whole module, legacy": WholeModule(zipped=False),
    "safetensors shards": Shards("model", "safetensors"),
    "bin shards": Shards("pytorch_model", "bin"),
    "shards of ranks": RankShards(),
    "DCP": DcpFolder(),
    "ZeRO": ZeroFolder(),
    "ZeRO, stage 2": ZeroMasters(),
    "universal": UniversalFolder(stage=2),
    "universal, stage 3": UniversalFolder(stage=3),
    "universal, tensor parallel": CutUniversal(maps=False),
    "universal, tensor parallel with maps": CutUniversal(maps=True),
    "Megatron": MegatronFolder(),
    "Megatron-FSDP": MegatronFsdp(),
    "torch_checkpointing": Items(zipped=False),
    "files of ranks": RankFiles(zipped=True),
    "files of ranks, legacy": RankFiles(zipped=False),
    "files of ranks, flattened": FlatFiles(),
    "stable-baselines3": StableBaselines(),
    "nemo": Nemo(),
    "pdparams": Pdparams(),
    "flax": Flax(),
    "orbax": Orbax(),
    "npz": Npz(np.savez),
    "npz, compressed": Npz(np.savez_compressed),
    "trainer_state.json": TrainerState(),
    "adapter_config.json": Adapter(),
}


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
