"""Entries are cut out of pickles, and taken out of them: what is loaded then is what was saved, without them."""

from __future__ import annotations

import argparse
import collections
import pickle
import pickletools
from typing import Any

import pytest

from ema_cli.formats.copies.description import CannotCut, cut_description, entry_bytes

Path = tuple[str, ...]


def is_optimizer(path: Path) -> bool:
    """Return whether a path leads to what is cut here."""
    return path in (("optimizer",), ("state", "optimizers"))


def saved() -> dict[str, Any]:
    """Return a dict of many entries, some of which share constants with those that are cut."""
    betas, text = (0.9, 0.95), "a text that comes again"
    return {
        "optimizer": {"betas": betas, text: [1, 2], "type": collections.OrderedDict, "deep": ((betas, text), None)},
        "model": collections.OrderedDict({text: betas, "x": [betas, text, ((betas, text), None)]}),
        "state": {"model": {"a": 1}, "optimizers": [text, {"b": 2}], "last": text},
        "args": argparse.Namespace(optimizer=3, kind=collections.OrderedDict),
        **{f"entry {number}": number for number in range(2500)},
    }


@pytest.mark.parametrize("protocol", [1, 2, 3])
def test_what_is_loaded_is_all_but_what_was_cut(protocol: int):
    """Whatever refers to constants that were first made in what is gone."""
    value = saved()
    cut, paths = cut_description(pickle.dumps(value, protocol), is_optimizer)
    assert set(paths) == {("optimizer",), ("state", "optimizers")}
    del value["optimizer"], value["state"]["optimizers"]
    assert pickle.loads(cut) == value
    assert list(pickle.loads(cut)) == list(value)
    assert b"betas" not in cut


@pytest.mark.parametrize("protocol", [1, 2, 3])
def test_one_entry_is_taken_out(protocol: int):
    """By itself it makes the value that it had."""
    value, dumped = saved(), pickle.dumps(saved(), protocol)
    keys = ("optimizer", "model", "state", "args", "entry 1000", "entry 2499", "nothing")
    taken = entry_bytes(dumped, [(key,) for key in keys], 300)
    assert [key for (key,) in taken] == [key for key in value if key in keys]
    for (key,), instructions in taken.items():
        assert pickle.loads((b"\x80\x03" if protocol > 1 else b"") + instructions + b".") == value[key]
    together = b"".join(taken.values())
    numbers = [argument for code, argument, _ in pickletools.genops(together + b".") if "PUT" in code.name]
    assert numbers == list(range(300, 300 + len(numbers)))


@pytest.mark.parametrize("count", [999, 1000, 2000])
def test_whole_batches_are_read(count: int):
    """Behind a batch of a thousand, a pickler writes one of none."""
    value = {f"entry {number}": number for number in range(count - 1)} | {"optimizer": {n: n for n in range(count)}}
    cut, _ = cut_description(pickle.dumps(value, 2), is_optimizer)
    assert pickle.loads(cut) == {f"entry {number}": number for number in range(count - 1)}


def test_one_entry_that_is_all_of_a_batch_is_cut():
    """A pickler writes the last of 1001 entries by an instruction of its own."""
    value = {f"entry {number}": number for number in range(1000)} | {"optimizer": [1]}
    cut, _ = cut_description(pickle.dumps(value, 2), is_optimizer)
    assert pickle.loads(cut) == {f"entry {number}": number for number in range(1000)}
    assert pickle.loads(cut_description(pickle.dumps({"optimizer": 1}, 2), is_optimizer)[0]) == {}


def test_what_cannot_be_cut_is_refused():
    """An object that both have, a newer protocol, a damaged pickle."""
    shared = [1]
    with pytest.raises(CannotCut, match="share an object"):
        cut_description(pickle.dumps({"optimizer": {"x": shared}, "model": shared}, 2), is_optimizer)
    assert cut_description(pickle.dumps({"model": shared, "optimizer": {"x": shared}}, 2), is_optimizer)
    with pytest.raises(CannotCut, match="share an object"):
        entry_bytes(pickle.dumps({"optimizer": {"x": shared}, "model": shared}, 2), [("model",)])
    with pytest.raises(CannotCut, match="protocol 4"):
        cut_description(pickle.dumps({"optimizer": 1}, 4), is_optimizer)
    for damaged in (b"", b"\x80\x02", b"\x80\x02}(X\x09\0\0\0optimizerus.", b"\x80\x02h\x05.", b"\x80\x02\xff"):
        with pytest.raises(CannotCut):
            cut_description(damaged, is_optimizer)


def test_every_damage_is_an_error_or_a_description():
    """No byte that is changed or missing ends in another exception."""
    dumped = pickle.dumps({"optimizer": {"x": (1, "y")}, "model": {"z": [1, "y"]}}, 2)
    for at in range(len(dumped)):
        for byte in (0, 1, 40, 0x71, 0xFF, dumped[at] ^ 1):
            for damaged in (dumped[:at] + bytes([byte]) + dumped[at + 1 :], dumped[:at]):
                try:
                    cut_description(damaged, is_optimizer)
                except CannotCut:
                    continue
