"""The container we write against the official writer, byte for byte."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from ema_cli.checkpoint import TensorSpec
from ema_cli.dtypes import DTYPES
from ema_cli.formats.safetensors.writer import lay_out_file, lay_out_shards, split_shards

TORCH = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "C64": torch.complex64,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "BOOL": torch.bool,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}  # fmt: skip
WRITTEN = {name: DTYPES[name] for name in TORCH}  # torch has no tensors of F4 and F6 of any shape


def header_of(specs: dict[str, TensorSpec], metadata: dict[str, str]) -> bytes:
    """Return the bytes that the official writer puts before the data."""
    tensors = {name: torch.zeros(spec.shape, dtype=TORCH[spec.dtype.name]) for name, spec in specs.items()}
    whole = save(tensors, metadata)
    return whole[: 8 + int.from_bytes(whole[:8], "little")]


def test_every_dtype_is_laid_out_as_the_official_writer_does():
    """One tensor of each dtype, the empty and the scalar one included: the same header, byte for byte."""
    specs = {f"b.{name}": TensorSpec(dtype, (2, 3)) for name, dtype in WRITTEN.items()}
    specs |= {f"a.{name}": TensorSpec(dtype, ()) for name, dtype in WRITTEN.items()}
    specs |= {f"c.{name}": TensorSpec(dtype, (0, 5)) for name, dtype in WRITTEN.items()}
    output = lay_out_file("x", specs, {"format": "pt"})
    assert output.header == header_of(specs, {"format": "pt"})
    assert output.size == len(output.header) + sum(spec.nbytes for spec in specs.values())


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(lambda n: n != "__metadata__")


@given(st.dictionaries(names, st.sampled_from(sorted(WRITTEN)), max_size=6), names)
def test_names_are_escaped_and_ordered_as_the_official_writer_does(dtypes: dict[str, str], value: str):
    """Any text as a name or as metadata: the same header, byte for byte."""
    specs = {name: TensorSpec(DTYPES[dtype], (1,)) for name, dtype in dtypes.items()}
    assert lay_out_file("x", specs, {"format": value}).header == header_of(specs, {"format": value})


def test_metadata_keys_are_sorted():
    """Several metadata keys, which the official writer orders at random, have one order here."""
    one = lay_out_file("x", {}, {"format": "pt", "ema_cli": "{}"}).header
    assert one == lay_out_file("x", {}, {"ema_cli": "{}", "format": "pt"}).header
    assert one.index(b"ema_cli") < one.index(b"format")


def test_shards_keep_their_tensors_and_the_index_says_where():
    """Each tensor lies in the shard asked for; the index names it, and the totals are right."""
    specs = {
        "a": TensorSpec(DTYPES["F32"], (3,)),
        "b": TensorSpec(DTYPES["I64"], ()),
        "c": TensorSpec(DTYPES["F16"], (2,)),
    }
    shard_of = {"a": "one.safetensors", "b": "two.safetensors", "c": "one.safetensors"}
    files, index = lay_out_shards(specs, shard_of, {"format": "pt"})
    assert [(file.name, sorted(file.table.specs)) for file in files] == [
        ("one.safetensors", ["a", "c"]),
        ("two.safetensors", ["b"]),
    ]
    assert json.loads(index) == {"metadata": {"total_parameters": 6, "total_size": 24}, "weight_map": shard_of}


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([6, 6, 2, 6, 2, 2], [[0], [1, 2], [3, 4, 5]]),  # the example in huggingface_hub's documentation
        ([11, 1, 11, 1], [[0], [2], [1, 3]]),  # a tensor over the limit has its own file, and closes no other
        ([5, 5, 5], [[0, 1], [2]]),
        ([0, 0, 11, 0], [[2], [0, 1, 3]]),
        ([10], [[0]]),
        ([3, 3, 3], [[0, 1, 2]]),
    ],
)
def test_shards_are_filled_in_order(sizes: list[int], expected: list[list[int]]):
    """Tensors go one after another into files of at most ten bytes; a single file has no number."""
    specs = {f"t{number}": TensorSpec(DTYPES["U8"], (size,)) for number, size in enumerate(sizes)}
    count = len(expected)
    names = ["m.safetensors"] if count == 1 else [f"m-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    wanted = {f"t{number}": name for name, numbers in zip(names, expected, strict=True) for number in numbers}
    assert split_shards(specs, 10, "m") == wanted


@pytest.mark.parametrize("pad", range(8))
def test_headers_end_on_eight_bytes(pad: int):
    """Whatever the length of a name, the data begin at a multiple of eight."""
    header = lay_out_file("x", {"n" * (pad + 1): TensorSpec(DTYPES["F64"], (1,))}, {}).header
    assert len(header) % 8 == 0


def test_a_table_is_used_again_for_the_same_tensors():
    """Several averages of one model have one table, whatever their metadata."""
    specs = {"a": TensorSpec(DTYPES["F32"], (2,)), "b": TensorSpec(DTYPES["I64"], ())}
    one = lay_out_file("x", specs, {"format": "pt"})
    # One key of metadata: the official writer orders several at random.
    other = lay_out_file("y", dict(reversed(specs.items())), {"more": "m"}, [one.table])
    assert other.table is one.table
    assert other.header == header_of(specs, {"more": "m"})
    assert lay_out_file("z", {"a": specs["a"]}, {}, [one.table]).table is not one.table
