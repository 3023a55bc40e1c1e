"""Fuzz the readers: bytes that coverage leads into one reader after the other, until it lets out what it must not.

Run by `make fuzz`. A finding is an exception that is no EmaError (from the pickle machine alone: no PickleError), or
one input that takes more than five seconds or a GiB. It is kept in `.fuzz/TARGET/`, beside the inputs that led to new
code, from which the next run goes on; `--input` gives it to its target alone.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pickle
import pkgutil
import re
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(".fuzz")
SECONDS_PER_INPUT = 5
GIB = 1 << 30
RANK_FILE = "model_rank_{}.pt"
ZERO_MODEL, ZERO_OPTIMIZER = "zero_pp_rank_0_mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"
ITEM_FILE, ITEM_CLOCK, ITEM_METADATA = "model_0.pt", "train_state_1.pt", "metadata.pkl"
UNIVERSAL_MODEL, UNIVERSAL_WEIGHT = "mp_rank_00_model_states.pt", "zero/w/fp32.pt"
MASTER = "optimizer.state.param."
FLAT_FILE = "model/rank1.pt"
RANK_SHARD = "shard-0000{}-model-00001-of-00001.safetensors"
READ_BYTES = 1 << 12  # from either end of a tensor
MAX_NAME_BYTES = 255  # as file systems allow

Reader = Callable[[bytes], object]


@dataclass(frozen=True)
class Memory:
    """Bytes in memory, as a source of bytes."""

    data: bytes
    path: Path = Path("input")

    @property
    def size(self) -> int:
        """Return the number of bytes."""
        return len(self.data)

    def read(self, offset: int, size: int) -> bytes:
        """Return a range, or raise as a file does that ends before it."""
        out = bytearray(size)
        self.read_into(offset, memoryview(out))
        return bytes(out)

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill a buffer from a range."""
        from ema_cli.errors import CheckpointError

        if not 0 <= offset < 1 << 63:  # which a file cannot be asked for: a reader has not checked it
            raise OverflowError(offset)
        if offset + len(out) > self.size:
            raise CheckpointError("ends while it is read")
        out[:] = self.data[offset : offset + len(out)]


# ---- Targets: each takes the folder with the files around the input, and returns what reads one input ----


def fuzz_safetensors(around: Path) -> Reader:
    """Read one file of safetensors; what we read, the official reader reads, too."""
    import safetensors

    from ema_cli.formats.safetensors.header import open_file

    def read(data: bytes) -> None:
        path = replaced(around / "a.safetensors", data)
        weights = open_file(path)
        read_through(weights)
        official = {name: tuple(entry["shape"]) for name, entry in safetensors.deserialize(data)}
        assert official == {name: spec.shape for name, spec in weights.specs.items()}

    return read


def fuzz_index(around: Path) -> Reader:
    """Read an index over two good shards."""
    from ema_cli.formats import open_checkpoint

    return lambda data: read_through(
        open_checkpoint(replaced(around / "model.safetensors.index.json", data).parent).tensors
    )


def fuzz_zip(around: Path) -> Reader:
    """Read a zip file of torch's: its directory, its pickle, and every tensor."""
    from ema_cli.formats.torch_save.zip_container import open_zip

    return lambda data: read_torch(open_zip(Memory(data)))


def fuzz_record(around: Path) -> Reader:
    """Open a record of a shard: who knows records that are like it finds what one finds who knows none."""
    from ema_cli.errors import EmaError
    from ema_cli.formats.dcp.records import RecordReader
    from ema_cli.storage.source import FileRegion

    def opened(reader: RecordReader, data: bytes) -> object:
        try:
            tensors = reader.open("w", FileRegion(Memory(data), 0, len(data)))
        except EmaError as error:
            return str(error)
        return tensors and (tensors.specs, tensors.offsets, tensors.views)

    knowing = RecordReader()
    for seed in record_seeds(around):
        opened(knowing, seed)

    def read(data: bytes) -> None:
        assert opened(RecordReader(dict(knowing._known)), data) == opened(RecordReader(), data)

    return read


def fuzz_legacy(around: Path) -> Reader:
    """Read a file of torch's before 1.6, and every tensor."""
    from ema_cli.formats.torch_save.legacy_container import open_legacy

    return lambda data: read_torch(open_legacy(Memory(data)))


def fuzz_pickle(around: Path) -> Reader:
    """Read a pickle, and nothing else."""
    from ema_cli.formats.pickles.unpickle import unpickle
    from ema_cli.formats.pickles.values import PickleError

    def read(data: bytes) -> None:
        try:
            unpickle(Memory(data))
        except PickleError:
            return

    return read


def fuzz_description(around: Path) -> Reader:
    """Cut an entry out of a pickle, and take others out of it: what is left is read as it was, without that entry."""
    from ema_cli.formats.copies.description import CannotCut, cut_description, entry_bytes, foreign_names
    from ema_cli.formats.pickles.unpickle import unpickle
    from ema_cli.formats.pickles.values import PickleError

    def read(data: bytes) -> None:
        try:
            for value in entry_bytes(data, [("model",), ("epoch",)], 256).values():
                foreign_names(value)
            cut, paths = cut_description(data, lambda path: path == ("optimizer",))
            root, _ = unpickle(Memory(data))
        except (CannotCut, PickleError):
            return
        left, _ = unpickle(Memory(cut))
        if paths and isinstance(root, dict):
            assert left.keys() == root.keys() - {"optimizer"}

    return read


def fuzz_module(around: Path) -> Reader:
    """Find weights and clocks in what a pickle holds, a whole module among others; each storage has 64 bytes."""
    from ema_cli.formats.pickles.unpickle import unpickle
    from ema_cli.formats.pickles.values import PickleError
    from ema_cli.formats.torch_save.content import TorchFile

    def read(data: bytes) -> None:
        try:
            root, _ = unpickle(Memory(data))
        except PickleError:
            return
        read_torch(TorchFile(Memory(bytes(64)), root, lambda keys: dict.fromkeys(keys, (0, 64))))

    return read


def fuzz_metadata(around: Path) -> Reader:
    """Read a `.metadata`, and the tensors in the good shards that it describes."""
    from ema_cli.formats import open_checkpoint

    return lambda data: read_through(open_checkpoint(replaced(around / ".metadata", data).parent).tensors)


def fuzz_rank_shards(around: Path) -> Reader:
    """Read one rank's file of pieces, beside that of another."""
    from ema_cli.formats import open_checkpoint

    return lambda data: read_through(open_checkpoint(replaced(around / RANK_SHARD.format(1), data).parent).tensors)


def fuzz_one_of(name: str, *, masters: bool = False) -> Callable[[Path], Reader]:
    """Return what reads one file of a folder, by its path in it, beside good files.

    With `masters` it is the float32 weights of an optimizer that are read.
    """

    def fuzz(around: Path) -> Reader:
        from ema_cli.formats import open_checkpoint
        from ema_cli.formats.options import ReadOptions

        options = ReadOptions(masters=masters)

        def read(data: bytes) -> None:
            replaced(around / name, data)
            read_through(open_checkpoint(around, options).tensors)

        return read

    return fuzz


def fuzz_container(suffix: str) -> Callable[[Path], Reader]:
    """Return what reads one file in a container of another library, and every tensor."""

    def fuzz(around: Path) -> Reader:
        from ema_cli.formats.arrays.reader import open_container

        return lambda data: read_torch(open_container(Memory(data, Path(f"input{suffix}"))))

    return fuzz


def fuzz_trainer_state(around: Path) -> Reader:
    """Read the Trainer's clocks."""
    from ema_cli.formats.trainers.trainer_state import read_trainer_state
    from ema_cli.storage.location import location

    return lambda data: read_trainer_state(location(replaced(around / "trainer_state.json", data)).open())


def fuzz_adapter(around: Path) -> Reader:
    """Read the settings of an adapter, and what it adds to the weights of a model."""
    from ema_cli.formats import open_checkpoint
    from ema_cli.formats.adapters.merged import merge

    def read(data: bytes) -> None:
        adapter = open_checkpoint(replaced(around / "adapter_config.json", data).parent)
        for merged in merge([adapter], open_checkpoint(around / "base.safetensors")):
            read_through(merged.tensors)

    return read


def fuzz_orbax(around: Path) -> Reader:
    """Read the tree of an item of Orbax's, and the good arrays that it names."""
    from ema_cli.formats import open_checkpoint

    return lambda data: read_through(open_checkpoint(replaced(around / "_METADATA", data).parent).tensors)


def fuzz_names(around: Path) -> Reader:
    """Tell what a name says, and print it."""
    from ema_cli.errors import printable
    from ema_cli.formats.trainers.names import is_unfinished_name, is_weights_name, name_clocks

    def read(data: bytes) -> None:
        name = os.fsdecode(data)
        assert printable(name).isprintable()
        for each in name_clocks(name).clocks.values():
            assert each.value >= 0
        is_weights_name(name)
        is_unfinished_name(name)

    return read


def replaced(path: Path, data: bytes) -> Path:
    """Write `data` to `path`, and return it."""
    # Not emptied first: file systems write a file to the disk that is emptied and filled again, which takes longer
    # than all the rest.
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(data)
        file.truncate()
    return path


def read_torch(file: Any) -> None:
    """Find the weights in what `torch.save` wrote, and read them."""
    from ema_cli.formats.options import ReadOptions
    from ema_cli.formats.trainers.places import select_tensors

    read_through(file.tensors(select_tensors(file.root, ReadOptions(), file).tensors))


def read_through(weights: Any) -> None:
    """Read both ends of each tensor."""
    for name, spec in weights.specs.items():
        size = min(spec.nbytes, READ_BYTES)
        for start in (0, spec.nbytes - size):
            weights.read_into(name, start, memoryview(bytearray(size)))
        weights.place(name)
        weights.shard(name)
        str(spec)


# ---- Seeds: small good files, written by the libraries whose they are ----

Seeds = Iterator[bytes]


def tensors() -> dict[str, Any]:
    """Return a small model's state dict."""
    import torch

    return {
        "layer.weight": torch.arange(6.0).reshape(2, 3),
        "layer.bias": torch.ones(2, dtype=torch.bfloat16),
        "counter": torch.tensor(3),
    }


def safetensors_seeds(around: Path) -> Seeds:
    """Yield files with tensors, without any, and of every dtype."""
    import torch
    from safetensors.torch import save

    yield save(tensors(), metadata={"format": "pt"})
    yield save({})
    kinds = (torch.float64, torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.uint16)
    yield save({str(kind): torch.ones(1).to(kind) for kind in kinds} | {"empty": torch.zeros(0, 2)})


def index_seeds(around: Path) -> Seeds:
    """Write two shards, and yield the index over them."""
    from safetensors.torch import save_file

    whole = tensors()
    weight_map = {}
    for number, part in enumerate((["layer.weight"], ["layer.bias", "counter"]), 1):
        shard = f"model-{number:05}-of-00002.safetensors"
        save_file({name: whole[name] for name in part}, around / shard)
        weight_map.update(dict.fromkeys(part, shard))
    yield json.dumps({"metadata": {"total_size": 36}, "weight_map": weight_map}).encode()


def torch_seeds(*, zipped: bool) -> Seeds:
    """Yield what torch.save writes of state dicts, of a checkpoint with clocks, and of modules."""
    import io

    import torch
    from torch import nn

    views = {"turned": torch.ones(2, 3).t(), "wave": torch.ones(2, dtype=torch.complex64).conj()}
    layer = nn.Linear(2, 1)
    tied = nn.Sequential(layer, nn.BatchNorm1d(1), nn.Sequential(layer))
    composer = {"state": {"model": tensors(), "timestamp": {"Timestamp": {"batch": 3, "epoch": 1}}}}
    for saved in (
        tensors(),
        {"model": tensors() | views, "step": 7, "epoch": torch.tensor(1), "args": argparse.Namespace(lr=0.1)},
        composer,
        {"state_dict": {"a": nn.Parameter(torch.ones(2))}, "model_ema": {"a": torch.ones(2)}},
        tied,
    ):
        out = io.BytesIO()
        torch.save(saved, out, _use_new_zipfile_serialization=zipped)
        yield out.getvalue()


def record_seeds(around: Path) -> Seeds:
    """Yield records of tensors, two of which are of one size, and of something else."""
    import io

    import torch

    for value in (torch.ones(2, 3), torch.ones(3, 2), torch.ones(2, 3).T, torch.ones(3).conj(), {"step": 7}):
        out = io.BytesIO()
        torch.save(value, out)
        yield out.getvalue()


def pickle_seeds(around: Path) -> Seeds:
    """Yield the pickles inside those, and plain ones of every protocol."""
    import io
    import zipfile

    for saved in torch_seeds(zipped=True):
        with zipfile.ZipFile(io.BytesIO(saved)) as archive:
            yield archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    plain = {"a": [1, 2.5, None, True, 1 << 70], "b": (b"x", "y", {"s"}), "c": complex(1, 2), "d": Path("p")}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        yield pickle.dumps(plain, protocol)


def metadata_seeds(around: Path) -> Seeds:
    """Write a folder of torch.distributed.checkpoint, and yield its `.metadata`; also with a tensor in pieces."""
    import torch
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it is one process which saves
        dcp.save({"model": tensors(), "step": 3}, checkpoint_id=around, no_dist=True)
    good = (around / ".metadata").read_bytes()
    yield good
    metadata = pickle.loads(good)  # our own, of this moment
    name = "model.layer.weight"
    stored = metadata.state_dict_metadata[name]
    at, info = next((key, value) for key, value in metadata.storage_data.items() if key.fqn == name)
    piece = type(stored.chunks[0])
    stored.chunks[:] = [piece(torch.Size((0, 0)), stored.size), piece(torch.Size((2, 0)), stored.size)]
    stored.size = torch.Size((4, 3))
    metadata.storage_data[type(at)(name, torch.Size((2, 0)))] = info
    yield pickle.dumps(metadata)
    # As ranks send it to the first, one row each: no object of one is that of another. Read by a template.
    pieces = [(torch.Size((row, 0)), torch.Size((1, 3))) for row in range(8)]
    metadata.state_dict_metadata[name] = type(stored)(
        stored.properties, torch.Size((8, 3)), [type(stored.chunks[0])(*piece) for piece in pieces]
    )
    for row, (offset, _) in enumerate(pieces):
        place = type(info)(info.relative_path, row * info.length, info.length)
        metadata.storage_data[type(at)(name, torch.Size(tuple(offset)), row)] = place
    yield pickle.dumps(pickle.loads(pickle.dumps(metadata)))


def masters_seeds(around: Path) -> Seeds:
    """Write a folder with a model, and its weights in float32 as Megatron names them, and yield its `.metadata`."""
    import torch.distributed.checkpoint as dcp

    wide = {name: tensor.float() for name, tensor in tensors().items() if tensor.is_floating_point()}
    saved = {**tensors(), **{f"{MASTER}{name}": tensor for name, tensor in wide.items()}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it is one process which saves
        dcp.save(saved, checkpoint_id=around, no_dist=True)
    yield (around / ".metadata").read_bytes()


def rank_shard_seeds(around: Path) -> Seeds:
    """Write the file of one of two ranks, and yield that of the other: halves of a matrix and of a vector."""
    import torch
    from safetensors.torch import save

    sides = [([0, 0], [0]), ([0, 2], [1])]
    for rank, (matrix, vector) in reversed(list(enumerate(sides, 1))):
        info = {"layer.weight": {"saved_offsets": matrix}, "bias": {"saved_offsets": vector}}
        pieces = {"layer.weight": torch.ones(2, 2), "bias": torch.ones(1, dtype=torch.bfloat16)}
        data = save(pieces, metadata={"DCP_SHARDING_INFO": json.dumps(info)})
        (around / RANK_SHARD.format(rank)).write_bytes(data)
    yield data


def zero_seeds(name: str) -> Callable[[Path], Seeds]:
    """Return what writes a folder of two ranks of ZeRO, and yields one of the files in the old format of torch's."""

    def seeds(around: Path) -> Seeds:
        import torch

        empty = {"w": torch.zeros(0), "tied": torch.zeros(0), "still": torch.zeros(0)}
        for rank in range(2):
            model = {
                "module": {**empty, "counter": torch.tensor(3)}, "buffer_names": ["counter"], "global_steps": 3,
                "param_shapes": [{"w": torch.Size((1, 3))}], "frozen_param_shapes": {"still": torch.Size((3,))},
                "frozen_param_fragments": {"still": torch.ones(2)}, "shared_params": {"tied": "w"}, "dp_world_size": 2,
            }  # fmt: skip
            states = {"zero_stage": 3, "partition_count": 2, "fp32_flat_groups": [torch.ones(2)]}
            files = {ZERO_MODEL: model, ZERO_OPTIMIZER: {"optimizer_state_dict": states}}
            for file, saved in files.items():
                torch.save(
                    saved, around / file.replace("rank_0", f"rank_{rank}", 1), _use_new_zipfile_serialization=False
                )
        yield (around / name).read_bytes()

    return seeds


def rows_seeds(around: Path) -> Seeds:
    """Write what two ranks of ZeRO stage 2 save, a row for each group, and yield an optimizer's file in old format."""
    import torch

    model = {
        "module": {"w": torch.ones(1, 3).bfloat16(), "counter": torch.tensor(3)}, "buffer_names": ["counter"],
        "param_shapes": [{"w": torch.Size((1, 3))}], "global_steps": 3, "dp_world_size": 2,
    }  # fmt: skip
    torch.save(model, around / UNIVERSAL_MODEL, _use_new_zipfile_serialization=False)
    for rank, count in enumerate((2, 1)):
        states = {
            "zero_stage": 2, "partition_count": [2], "single_partition_of_fp32_groups": [torch.ones(count)],
            "param_alignment_paddings": [[0]], "group_paddings": [1],
        }  # fmt: skip
        path = around / ZERO_OPTIMIZER.replace("rank_0", f"rank_{rank}", 1)
        torch.save({"optimizer_state_dict": states}, path, _use_new_zipfile_serialization=False)
    yield (around / ZERO_OPTIMIZER).read_bytes()


def universal_seeds(name: str) -> Callable[[Path], Seeds]:
    """Return what writes a folder as `ds_to_universal` makes it, and yields one of its files, in torch's old format."""

    def seeds(around: Path) -> Seeds:
        import torch

        module = {"w": torch.zeros(2, 2).bfloat16(), "tied": torch.zeros(2, 2).bfloat16(), "counter": torch.tensor(3)}
        model = {
            "module": module, "buffer_names": ["counter"], "global_steps": 3, "frozen_param_shapes": {},
            "param_shapes": [{"w": torch.Size((2, 2))}], "shared_params": {"tied": "w"}, "dp_world_size": 2,
        }  # fmt: skip
        (around / name).parent.mkdir(parents=True, exist_ok=True)
        (around / UNIVERSAL_WEIGHT).parent.mkdir(parents=True, exist_ok=True)
        for path, saved in {
            UNIVERSAL_MODEL: model,
            UNIVERSAL_WEIGHT: {"param": torch.ones(2, 2), "cat_dim": 0},
        }.items():
            torch.save(saved, around / path, _use_new_zipfile_serialization=False)
        yield (around / name).read_bytes()

    return seeds


def cut_universal_seeds(name: str) -> Callable[[Path], Seeds]:
    """Return what writes the same of two ranks, each with a row of a matrix, and yields one of its files.

    What says how they cut it is a map in the model states, or lies beside the parameter, as of `name` can be read.
    """

    def seeds(around: Path) -> Seeds:
        import torch

        pieces = [{"shape": [1, 2], "source": [2 * rank, [2, 1]], "dest": [0, [2, 1]]} for rank in range(2)]
        ranks = {rank: {"shard_shape": [1, 2], "pieces": [piece]} for rank, piece in enumerate(pieces)}
        info = {"affine_map": {"version": 1, "params": {"^w$": {"logical_shape": [2, 2], "ranks": ranks}}}}
        for rank in range(2):
            model = {
                "module": {"w": torch.ones(1, 2), "still": torch.ones(3), "counter": torch.tensor(3)},
                "buffer_names": ["counter"], "global_steps": 3, "param_shapes": [{"w": torch.Size((1, 2))}],
                "frozen_param_shapes": {"still": torch.Size((3,))}, "mp_world_size": 2,
                "universal_checkpoint_info": info if name == UNIVERSAL_MODEL else {"sub_param_shard_widths": {}},
            }  # fmt: skip
            torch.save(model, around / f"mp_rank_0{rank}_model_states.pt", _use_new_zipfile_serialization=False)
        for label, saved in {
            "w": {"param": torch.ones(2, 2), "cat_dim": 0, "param_n_sub_params": 1},
            "still": {"param": torch.ones(3)},
        }.items():
            path = around / UNIVERSAL_WEIGHT.replace("w", label, 1)
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(saved, path, _use_new_zipfile_serialization=False)
        yield (around / name).read_bytes()

    return seeds


def rank_seeds(name: str, items: Mapping[str, Any]) -> Callable[[Path], Seeds]:
    """Return what writes what two ranks have of a model, and of further items, and yields one file in the old format.

    Args:
        name: of that file.
        items: what each rank saves, by the patterns of the files' names; None stands for the model.
    """

    def seeds(around: Path) -> Seeds:
        import torch
        import torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import Replicate, Shard, distribute_tensor
        from torch.testing._internal.distributed.fake_pg import FakeStore

        for rank in range(2):
            dist.init_process_group("fake", rank=rank, world_size=2, store=FakeStore())
            mesh = init_device_mesh("cpu", (2,))
            state = {
                name: distribute_tensor(torch.ones(3, 2), mesh, [placement], src_data_rank=None)
                for name, placement in (("a", Shard(0)), ("b", Shard(1)), ("c", Replicate()))
            }
            for pattern, saved in items.items():
                path = around / pattern.format(rank)
                torch.save(state if saved is None else saved, path, _use_new_zipfile_serialization=False)
            dist.destroy_process_group()
        if len(items) > 1:
            layout = {rank: {"file_path": f"model_{rank}.pt"} for rank in range(2)}
            about = {"world_size": 2, "metadata": {"model": {"rank_to_layout_info": layout}}}
            (around / ITEM_METADATA).write_bytes(pickle.dumps(about, 4))
        yield (around / name).read_bytes()

    return seeds


def flat_seeds(around: Path) -> Seeds:
    """Write OLMo's files of two ranks, with what FSDP flattened of two parameters, and yield the second."""
    import torch
    from torch.distributed.fsdp._flat_param import _ShardParamInfo as Info

    infos = [
        (Info(True, 0, 3, 0, 2), Info(False, None, None, None, None)),
        (Info(True, 0, 1, 3, 3), Info(True, 1, 2, 0, 1)),
    ]
    (around / "model").mkdir(exist_ok=True)
    for rank, own in enumerate(infos):
        known = {"data": torch.ones(3), "_fqns": ("a", "b"), "_shapes": (torch.Size((2, 2)), torch.Size((2,)))}
        handle = {f"flat_param.{key}": value for key, value in {**known, "_shard_param_infos": own}.items()}
        state = {"modules": [{"name": "_fsdp_wrapped_module.x", "handles": [handle]}]}
        torch.save(state, around / "model" / f"rank{rank}.pt", _use_new_zipfile_serialization=False)
    yield (around / FLAT_FILE).read_bytes()


def npz_seeds(around: Path) -> Seeds:
    """Yield archives of numpy's, stored and compressed."""
    import io

    import numpy as np

    for save in (np.savez, np.savez_compressed):
        out = io.BytesIO()
        arrays = {"a/w": np.arange(6.0).reshape(2, 3), "turned": np.asfortranarray(np.ones((2, 3), "f4"))}
        save(out, step=3, texts=np.array(["a"]), half=np.zeros(2, "V2"), **arrays, **{"opt/mu": np.ones(2)})
        yield out.getvalue()


def zip_in_zip_seeds(around: Path) -> Seeds:
    """Yield an archive as stable-baselines3 makes it."""
    import io
    import zipfile

    for policy in torch_seeds(zipped=True):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("data", json.dumps({"num_timesteps": 64, "a": {":type:": "x", ":serialized:": "gASV"}}))
            archive.writestr("policy.pth", policy)
        yield out.getvalue()
        return


def nemo_seeds(around: Path) -> Seeds:
    """Yield archives in each format of tar, with names that need headers of their own."""
    import io
    import tarfile

    weights = next(torch_seeds(zipped=True))
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:", format=form) as archive:
            for name, content in (("./" + "n/" * 60 + "x", b"x"), ("./model_weights.ckpt", weights)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        yield out.getvalue()


def pdparams_seeds(around: Path) -> Seeds:
    """Yield pickles of arrays as Paddle makes them."""
    import numpy as np

    arrays = {"w": np.arange(6.0).reshape(2, 3), "b": np.ones(2, "u2"), "t": np.asfortranarray(np.ones((2, 3)))}
    for protocol in (3, 4):
        yield pickle.dumps({**arrays, "StructuredToParameterName@@": {"w": "linear_0.w_0"}}, protocol)
        yield pickle.dumps({"model": {"w": ("linear_0.w_0", np.ones(2))}, "epoch": 3}, protocol)


def msgpack_seeds(around: Path) -> Seeds:
    """Yield trees as Flax makes them, one with an array in chunks."""
    array = b"\xc7\x16\x01\x93\x91\x02\xa7float32\xc4\x08" + bytes(8)
    chunks = (
        b"\x83\xb9__msgpack_chunked_array__\xc3\xa5shape\x81\xa10\x04\xa6chunks\x82\xa10" + array + b"\xa11" + array
    )
    yield b"\x83\xa6params\x82\xa1w" + array + b"\xa1v" + chunks + b"\xa4step\x03\xa9opt_state\x81\xa10\x80"
    yield b"\x84\xa1a\xc0\xa1b\xcb?\xf0\0\0\0\0\0\0\xa1c\xd9\x01x\xa1w" + array


def trainer_state_seeds(around: Path) -> Seeds:
    """Yield the state as the Trainer writes it."""
    state = {"epoch": 1.5, "global_step": 300, "num_input_tokens_seen": 0, "log_history": [{"loss": float("nan")}]}
    yield json.dumps(state, indent=2).encode()


def adapter_seeds(around: Path) -> Seeds:
    """Write an adapter and its base model, and yield configurations as PEFT writes them."""
    import torch
    from safetensors.torch import save_file

    pairs = {f"base_model.model.q.lora_{part}.weight": torch.ones(2, 2) for part in "AB"}
    save_file(pairs, around / "adapter_model.safetensors")
    save_file({"q.weight": torch.ones(2, 2), "v.weight": torch.ones(3)}, around / "base.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 1.5, "target_modules": ["q", "v"]}
    more = {
        "alpha_pattern": {"q": 3, "^v": 1.5},
        "use_rslora": True,
        "init_lora_weights": "gaussian",
        "use_dora": False,
    }
    yield json.dumps(config).encode()
    yield json.dumps({**config, **more}).encode()


def orbax_seeds(around: Path) -> Seeds:
    """Copy an item that Orbax wrote, and yield the tree of its arrays."""
    import shutil

    saved = next((Path(__file__).parents[1] / "tests" / "data").glob("orbax-*"))
    tree = min(saved.rglob("_METADATA"), key=lambda path: len(path.parts))
    shutil.copytree(tree.parent, around, dirs_exist_ok=True)
    yield tree.read_bytes()


def name_seeds(around: Path) -> Seeds:
    """Yield names of many trainers."""
    names = "ep1-ba50-rank0.pt", "epoch=3-step=400.ckpt", "a/checkpoint-500", "10epoch.pth", "tokens4B-\u0663\u202e.pt"
    yield from map(str.encode, names)


@dataclass(frozen=True)
class Target:
    """What reads an input, what it begins with, and the words that its inputs are made of."""

    reader: Callable[[Path], Reader]
    seeds: Callable[[Path], Seeds]
    words: tuple[str, ...] = ()
    max_bytes: int = 8192


JSON_WORDS = ("true", "null", "1e400", "1e-400", "-0", "NaN", r"\ud800", "9" * 30)
TENSOR_WORDS = ("dtype", "shape", "data_offsets", "__metadata__", "BF16", "F4", "F6_E3M2", "C64", "9223372036854775807")
PICKLE_WORDS = (
    "ctorch._utils\n_rebuild_tensor_v2\n", "ctorch._utils\n_rebuild_tensor_v3\n", "ctorch._utils\n_rebuild_parameter\n",
    "ctorch._tensor\n_rebuild_from_type_v2\n", "ctorch.nn.parameter\nParameter\n", "ctorch\nFloatStorage\n",
    "ctorch.storage\nUntypedStorage\n", "ctorch\nfloat4_e2m1fn_x2\n", "ctorch\nSize\n", "ccollections\nOrderedDict\n",
    "ccollections\ndefaultdict\n", "c__builtin__\nset\n", "_modules", "_parameters", "_buffers", "conj", "neg",
    "_non_persistent_buffers_set", "_state_dict_hooks", "state_dict", "model_ema", "n_averaged", "_extra_state",
    "storage", "\x85", "\x86", "\x87", "\x8a\xff", "\x8b\xff\x0f\x00\x00", "R.", "b.", "(dR", "](ae",
)  # fmt: skip
DCP_WORDS = (
    "offsets", "sizes", "chunks", "properties", "size", "fqn", "offset", "index", "relative_path", "length",
    "transform_descriptors", "planner_data", "__0_0.distcp", "ctorch.distributed.checkpoint.metadata\n",
)  # fmt: skip

ZERO_WORDS = (
    "param_shapes", "frozen_param_shapes", "frozen_param_fragments", "shared_params", "buffer_names", "module",
    "partition_count", "fp32_flat_groups", "single_partition_of_fp32_groups", "param_alignment_paddings", "zero_stage",
)  # fmt: skip
CUT_WORDS = (
    "universal_checkpoint_info", "affine_map", "params", "logical_shape", "ranks", "shard_shape", "pieces", "source",
    "dest", "scale", "cat_dim", "param_n_sub_params", "sub_param_shape", "vocab_tensor", "partition_dim", "patterns",
    "sub_param_shard_widths", "cdeepspeed.checkpoint.constants\nSubparamShape\n", "mp_world_size",
)  # fmt: skip
RANK_WORDS = (
    "_local_tensor", "_spec", "mesh", "placements", "tensor_meta", "shard_order", "_layout", "axes", "_root_mesh",
    "dim", "_coordinate_on_dim", "split_factor", "ctorch.distributed.tensor\nDTensor\n", "shard_offsets",
    "ctorch.distributed._shard.sharded_tensor.api\nShardedTensor\n", "ctorch._utils\n_rebuild_wrapper_subclass\n",
    "shard_sizes", "ctorch.distributed.tensor.placement_types\n_StridedShard\n",
)  # fmt: skip
FLAT_WORDS = (
    "modules", "handles", "name", "flat_param.data", "flat_param._fqns", "flat_param._shapes",
    "flat_param._shard_indices", "flat_param._shard_param_infos", "flat_param._shard_param_offsets",
    "_fsdp_wrapped_module.",
)  # fmt: skip
NUMPY_WORDS = (
    "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }", "|V2", "<c16", "9223372036854775807", "float32",
    "bfloat16", "cnumpy._core.multiarray\n_reconstruct\n", "cnumpy\ndtype\n", "__msgpack_chunked_array__", "chunks",
)  # fmt: skip
ITEMS = {"model_{}.pt": None, "train_state_{}.pt": {"step": 64}}
ITEM_WORDS = ("world_size", "metadata", "rank_to_layout_info", "file_path", "model_1.pt", "step", "train_state")
TARGETS: Mapping[str, Target] = {
    "safetensors": Target(fuzz_safetensors, safetensors_seeds, JSON_WORDS + TENSOR_WORDS),
    "index": Target(fuzz_index, index_seeds, (*JSON_WORDS, "weight_map", "..", "\\\\", "layer.bias")),
    "rank-shards": Target(
        fuzz_rank_shards, rank_shard_seeds, (*JSON_WORDS, *TENSOR_WORDS, "DCP_SHARDING_INFO", "saved_offsets")
    ),
    "zip": Target(fuzz_zip, lambda around: torch_seeds(zipped=True), (*PICKLE_WORDS, "PK\x01\x02", "PK\x06\x06")),
    "record": Target(fuzz_record, record_seeds, (*PICKLE_WORDS, "PK\x01\x02", "PK\x06\x06")),
    "legacy": Target(fuzz_legacy, lambda around: torch_seeds(zipped=False), PICKLE_WORDS),
    "pickle": Target(fuzz_pickle, pickle_seeds, PICKLE_WORDS),
    "description": Target(fuzz_description, pickle_seeds, (*PICKLE_WORDS, "optimizer", "X\x09\x00\x00\x00optimizer")),
    "module": Target(fuzz_module, pickle_seeds, PICKLE_WORDS),
    "metadata": Target(fuzz_metadata, metadata_seeds, PICKLE_WORDS + DCP_WORDS),
    "masters": Target(
        fuzz_one_of(".metadata", masters=True),
        masters_seeds,
        (*PICKLE_WORDS, *DCP_WORDS, MASTER, "optimizer.distributed."),
    ),
    "zero-model": Target(fuzz_one_of(ZERO_MODEL), zero_seeds(ZERO_MODEL), PICKLE_WORDS + ZERO_WORDS),
    "zero-optimizer": Target(fuzz_one_of(ZERO_OPTIMIZER), zero_seeds(ZERO_OPTIMIZER), PICKLE_WORDS + ZERO_WORDS),
    "zero-rows": Target(fuzz_one_of(ZERO_OPTIMIZER, masters=True), rows_seeds, PICKLE_WORDS + ZERO_WORDS),
    "rank-file": Target(
        fuzz_one_of(RANK_FILE.format(0)), rank_seeds(RANK_FILE.format(0), {RANK_FILE: None}), PICKLE_WORDS + RANK_WORDS
    ),
    "flat-file": Target(fuzz_one_of(FLAT_FILE), flat_seeds, PICKLE_WORDS + FLAT_WORDS),
    "universal-model": Target(
        fuzz_one_of(UNIVERSAL_MODEL), universal_seeds(UNIVERSAL_MODEL), PICKLE_WORDS + ZERO_WORDS
    ),
    "universal-weight": Target(
        fuzz_one_of(UNIVERSAL_WEIGHT), universal_seeds(UNIVERSAL_WEIGHT), (*PICKLE_WORDS, "param", "cat_dim")
    ),
    "cut-model": Target(
        fuzz_one_of(UNIVERSAL_MODEL), cut_universal_seeds(UNIVERSAL_MODEL), PICKLE_WORDS + ZERO_WORDS + CUT_WORDS
    ),
    "cut-weight": Target(
        fuzz_one_of(UNIVERSAL_WEIGHT), cut_universal_seeds(UNIVERSAL_WEIGHT), PICKLE_WORDS + CUT_WORDS
    ),
    "item-file": Target(fuzz_one_of(ITEM_FILE), rank_seeds(ITEM_FILE, ITEMS), PICKLE_WORDS + RANK_WORDS),
    "item-clock": Target(fuzz_one_of(ITEM_CLOCK), rank_seeds(ITEM_CLOCK, ITEMS), PICKLE_WORDS + ITEM_WORDS),
    "item-metadata": Target(fuzz_one_of(ITEM_METADATA), rank_seeds(ITEM_METADATA, ITEMS), PICKLE_WORDS + ITEM_WORDS),
    "npz": Target(fuzz_container(".npz"), npz_seeds, (*NUMPY_WORDS, "PK\x01\x02", "PK\x06\x06")),
    "stable-baselines3": Target(
        fuzz_container(".zip"), zip_in_zip_seeds, ("num_timesteps", "policy.pth", "PK\x01\x02", "PK\x06\x06"), 16384
    ),
    "nemo": Target(fuzz_container(".nemo"), nemo_seeds, ("ustar\0", "path=", "size=", "model_weights.ckpt"), 16384),
    "pdparams": Target(fuzz_container(".pdparams"), pdparams_seeds, PICKLE_WORDS + NUMPY_WORDS),
    "orbax": Target(
        fuzz_orbax,
        orbax_seeds,
        (*JSON_WORDS, "tree_metadata", "key_metadata", "value_metadata", "use_zarr3", "../x"),
        16384,
    ),
    "msgpack": Target(
        fuzz_container(".msgpack"), msgpack_seeds, (*NUMPY_WORDS, "params", "batch_stats", "\xc9", "\xdf")
    ),
    "trainer-state": Target(fuzz_trainer_state, trainer_state_seeds, (*JSON_WORDS, "global_step", "epoch")),
    "adapter": Target(fuzz_adapter, adapter_seeds, JSON_WORDS),
    "names": Target(fuzz_names, name_seeds, ("step", "ep", "ba", "tok", "iter", ".", "/"), MAX_NAME_BYTES),
}


# ---- One target, in a process of its own ----


def checked(reader: Reader) -> Callable[[bytes], None]:
    """Return the reader without the errors that it may raise."""
    from ema_cli.errors import EmaError

    def read(data: bytes) -> None:
        try:
            reader(data)
        except EmaError as error:
            str(error)

    return read


def hunt(name: str, seconds: int) -> None:
    """Fuzz target `name`; does not return."""
    import atheris

    import ema_cli.formats

    packages = [info.name for info in pkgutil.walk_packages(ema_cli.__path__, "ema_cli.")]
    for module in [each for each in sys.modules if each.startswith("ema_cli")]:
        del sys.modules[module]  # to be imported again, so that their coverage is told
    with atheris.instrument_imports(include=["ema_cli"]):
        for module in packages:
            if module.startswith("ema_cli.formats."):
                importlib.import_module(module)
    target, folder = TARGETS[name], FOLDER / name
    flags = {
        "max_total_time": seconds,
        "timeout": SECONDS_PER_INPUT,
        "rss_limit_mb": GIB >> 20,
        "max_len": target.max_bytes,
        "dict": folder / "words",
        "artifact_prefix": f"{folder}/",
    }
    reader = checked(target.reader(folder / "around"))
    arguments = [sys.argv[0], *(f"-{flag}={value}" for flag, value in flags.items())]
    atheris.Setup([*arguments, str(folder / "corpus"), str(folder / "seeds")], reader)
    # libFuzzer looks at the memory once a second; this stops what comes and goes between.
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + GIB, used + GIB))
    atheris.Fuzz()


# ---- All of them ----


def prepare(name: str) -> None:
    """Write the seeds of target `name`, the files around them, and the words."""
    target, folder = TARGETS[name], FOLDER / name
    for part in ("seeds", "corpus", "around"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds(folder / "around")):
        (folder / "seeds" / f"{number:02}").write_bytes(seed)
    lines = ['"' + "".join(f"\\x{byte:02x}" for byte in word.encode("latin-1")) + '"' for word in target.words]
    (folder / "words").write_text("\n".join(lines) + "\n")


def run(name: str, seconds: int) -> bool:
    """Fuzz target `name` for a while, say what came of it, and return whether nothing was found."""
    command = [sys.executable, __file__, "--target", name, "--seconds", str(seconds), "--child"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    log = FOLDER / name / "log"
    log.write_text(done.stdout)
    executions = max((int(count) for count in re.findall(r"^(?:Done |#)(\d+)", done.stdout, re.MULTILINE)), default=0)
    kept = len(list((FOLDER / name / "corpus").iterdir()))
    verdict = "nothing found" if done.returncode == 0 else f"FOUND SOMETHING: see {log}"
    print(f"{name:15} {executions:10} inputs, {kept:5} kept, {verdict}", flush=True)
    return done.returncode == 0


def main() -> int:
    """Fuzz the targets that were asked for, one after the other; return 1 if one of them found something."""
    parser = argparse.ArgumentParser(description="Fuzz the readers.")
    parser.add_argument("--target", action="append", choices=TARGETS, help="only this one; may be repeated")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--input", type=Path, help="give this file to the target, and nothing else")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.target or list(TARGETS)
    if options.child:
        hunt(names[0], options.seconds)
    for name in names:
        prepare(name)
    if options.input:
        for name in names:
            checked(TARGETS[name].reader(FOLDER / name / "around"))(options.input.read_bytes())
        return 0
    results = [run(name, options.seconds) for name in names]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
