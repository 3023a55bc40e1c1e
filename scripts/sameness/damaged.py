"""Checkpoints that are damaged, cut short, or made so that no writer could have made them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from .containers import write_shards
from .distributed import Pieces, save_folder
from .refused import Make, one, saved
from .runs import hf_checkpoint
from .tensors import model, save, save_legacy, save_tensors, save_text


def with_header(header: bytes | Mapping[str, object], content: bytes = bytes(24)) -> Make:
    """Return a maker of a safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return one("step-1.safetensors", struct.pack("<Q", len(text)) + text + content)


def entry(begin: int = 0, end: int = 24, shape: tuple[int, ...] = (2, 3), dtype: str = "F32") -> dict[str, object]:
    """Return a tensor's entry in a header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def cut(name: str, make: Callable[[Path], object], keep: float) -> Make:
    """Return a maker of a file of which only a share is kept."""

    def made(run: Path) -> None:
        make(run / name)
        content = (run / name).read_bytes()
        (run / name).write_bytes(content[: int(len(content) * keep)])

    return made


def changed(name: str, make: Callable[[Path], object], old: bytes, new: bytes) -> Make:
    """Return a maker of a file in which some bytes are others; as many, so that no place moves."""
    assert len(old) == len(new)

    def made(run: Path) -> None:
        make(run / name)
        content = (run / name).read_bytes()
        assert old in content, (name, old)
        (run / name).write_bytes(content.replace(old, new))

    return made


def _torch(path: Path) -> None:
    save(path, {"model": model(1), "step": 1})


def _legacy(path: Path) -> None:
    save_legacy(path, {"model": model(1), "step": 1})


def _tensors(path: Path) -> None:
    save_tensors(path, model(1))


def _shards(change: Callable[[Path], object]) -> Make:
    """Return a maker of a model in shards that is changed afterwards."""

    def make(run: Path) -> None:
        write_shards(run / "checkpoint-1", model(1), "model", "safetensors", 2)
        change(run / "checkpoint-1")

    return make


def _index(change: Callable[[dict[str, str]], object]) -> Make:
    """Return a maker of a model in shards whose index is changed."""

    def edit(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        change(index["weight_map"])
        save_text(path, index)

    return _shards(edit)


def _state(text: str) -> Make:
    """Return a maker of a checkpoint of the Trainer's with this state."""

    def make(run: Path) -> None:
        hf_checkpoint(run / "checkpoint-1", 1, model(1))
        save_text(run / "checkpoint-1" / "trainer_state.json", text)

    return make


def _dcp(change: Callable[[Path], object]) -> Make:
    """Return a maker of a folder of torch.distributed.checkpoint that is changed afterwards."""

    def make(run: Path) -> None:
        save_folder(run / "step-1", {"model": model(1), "step": 1})
        change(run / "step-1")

    return make


def _hole(run: Path) -> None:
    pieces = Pieces(run / "step-1")
    pieces.add("model.rows", torch.ones(7, 3), [((0, 0), (3, 3)), ((4, 0), (3, 3))])
    pieces.write()


def _shorten(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _keyed(value: object) -> Callable[[Path], None]:
    return lambda run: save(run / "step-1.pt", value)


MAKERS: dict[str, Make] = {
    "header-short": one("step-1.safetensors", b"1234"),
    "header-huge": one("step-1.safetensors", struct.pack("<Q", 1 << 40) + bytes(64)),
    "header-cut": one("step-1.safetensors", struct.pack("<Q", 500) + b"{" + bytes(64)),
    "header-text": with_header(b"hello"),
    "header-json": with_header(b'{"w": '),
    "header-twice": with_header(b'{"w": %b, "w": %b}' % ((json.dumps(entry()).encode(),) * 2)),
    "header-bare": with_header(entry()),
    "header-metadata": with_header({"__metadata__": {"a": 1}, "w": entry()}),
    "header-keys": with_header({"w": {"dtype": "F32", "shape": [6]}}),
    "header-counts": with_header({"w": entry(shape=(-2, 3))}),
    "header-dtype": with_header({"w": entry(dtype="F33")}),
    "header-bytes": with_header({"w": entry(shape=(2, 4))}),
    "header-hole": with_header({"w": entry(), "b": entry(28, 40, (3,))}, bytes(40)),
    "header-overlap": with_header({"w": entry(), "b": entry(20, 32, (3,))}, bytes(32)),
    "header-bits": with_header({"w": entry(0, 1, (3,), "F4")}, bytes(1)),
    "header-name": with_header(b'{"\\ud800": %b}' % json.dumps(entry()).encode()),
    "data-cut": cut("step-1.safetensors", _tensors, 0.9),
    "data-more": with_header({"w": entry()}, bytes(25)),
    "zip-cut": cut("step-1.pt", _torch, 0.8),
    "zip-flipped": changed("step-1.pt", _torch, b"torch._utils", b"torch._atils"),
    "zip-directory": changed("step-1.pt", _torch, b"PK\x01\x02", b"PK\x01\x03"),
    "zip-byteorder": changed("step-1.pt", _torch, b"little", b"big!!!"),
    "zip-pickle": changed("step-1.pt", _torch, b"FloatStorage", b"FloatStorege"),
    "legacy-cut": cut("step-1.pt", _legacy, 0.9),
    "legacy-cut-pickle": cut("step-1.pt", _legacy, 0.2),
    "legacy-more": lambda run: (_legacy(run / "step-1.pt"), (run / "step-1.pt").open("ab").write(b"more"))[0],
    "legacy-protocol": changed("step-1.pt", _legacy, b"M\xe9\x03", b"M\xea\x03"),
    "legacy-big-endian": changed("step-1.pt", _legacy, b"little_endianq\x02\x88", b"little_endianq\x02\x89"),
    "legacy-keys": changed("step-1.pt", _legacy, b"10001q", b"10002q"),
    "empty-file": one("step-1.pt", b""),
    "beginning": one("step-1.pt", saved()[:7]),
    "key-number": _keyed({"model": {1: torch.ones(2)}}),
    "key-metadata": _keyed({"model": {"__metadata__": torch.ones(2)}}),
    "key-surrogate": _keyed({"model": {"\udcff": torch.ones(2)}}),
    "key-prefixes": _keyed({"model": {"module.a": torch.ones(2), "_orig_mod.module.a": torch.ones(2)}}),
    "key-long": _keyed({"model": {"n" * 70_000: torch.ones(2)}}),
    "no-tensors": _keyed({"model": {"a": 1}, "step": 1}),
    "index-json": _shards(lambda folder: save_text(folder / "model.safetensors.index.json", '{"weight_map": ')),
    "index-no-map": _shards(lambda folder: save_text(folder / "model.safetensors.index.json", "{}")),
    "index-outside": _index(lambda names: names.update({"mask": "../model.safetensors"})),
    "index-no-shard": _index(lambda names: names.update({"mask": "weights.txt"})),
    "index-more": _index(lambda names: names.update({"more": "model-00001-of-00002.safetensors"})),
    "index-less": _index(lambda names: names.pop("mask")),
    "shard-missing": _shards(lambda folder: (folder / "model-00002-of-00002.safetensors").unlink()),
    "shard-cut": _shards(lambda folder: _shorten(folder / "model-00002-of-00002.safetensors")),
    "state-cut": _state('{"global_step": 5, "epo'),
    "state-wrong": _state('{"global_step": 5,, }'),
    "state-odd": _state('{"global_step": "five", "epoch": -1, "num_input_tokens_seen": 0}'),
    "dcp-no-metadata": _dcp(lambda folder: (folder / ".metadata").unlink()),
    "dcp-metadata-cut": _dcp(lambda folder: _shorten(folder / ".metadata")),
    "dcp-shard-missing": _dcp(lambda folder: (folder / "__0_0.distcp").unlink()),
    "dcp-shard-cut": _dcp(lambda folder: _shorten(folder / "__0_0.distcp")),
    "dcp-unfinished": _dcp(lambda folder: save_text(folder.parent / "step-1-unfinished", "")),
    "dcp-hole": _hole,
    "dcp-lightning": lambda run: save_folder(run / "epoch=0-step=1.ckpt", {"state_dict": model(1)}),
    "dcp-olmo": lambda run: save_folder(run / "step1" / "model_and_optim", {"model": model(1)}),
    "dcp-megatron": _dcp(lambda folder: save(folder / "common.pt", {"iteration": 1})),
    "dcp-extra-state": lambda run: save_folder(run / "step-1", {"model": {**model(1), "q._extra_state": {"a": 1}}}),
    "dcp-no-model": lambda run: save_folder(run / "step-1", {"optim": model(1), "step": 1}),
    "composer-ema": _keyed(
        {"state": {"model": {"a": torch.ones(2)},
                   "algorithms": [("EMA", {"ema_model": {"named_parameters_dict": {"b": torch.ones(2)}}})]}}
    ),
}  # fmt: skip
