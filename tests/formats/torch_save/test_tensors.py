"""Tensors of a file of torch's are read as they are: any type, conjugated, negated, transposed."""

from __future__ import annotations

from itertools import combinations_with_replacement
from pathlib import Path

import pytest
import torch

from tests.formats.reading import read_range, stored_bytes
from tests.formats.torch_save.test_content import DATA, file_of, opened, ref

F8 = {
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.float8_e8m0fnu: "F8_E8M0",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ", torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
}  # fmt: skip


@pytest.mark.parametrize("dtype", F8)
def test_eight_bit_floats(dtype: torch.dtype, tmp_path: Path) -> None:
    """Floats of 8 bits have safetensors' names, are not averaged, and read as they lie."""
    tensor = torch.arange(250, dtype=torch.uint8).view(5, 50).view(dtype)
    file = opened(tmp_path, {"w": tensor, "turned": tensor.t()})
    weights = file.tensors(file.root)
    assert {spec.dtype.name for spec in weights.specs.values()} == {F8[dtype]}
    assert not weights.specs["w"].dtype.averaged
    assert read_range(weights, "turned", 0, 250) == stored_bytes(tensor.t())


def test_four_bit_floats_are_counted_as_elements(tmp_path: Path) -> None:
    """torch counts pairs of F4, safetensors elements: the last dimension is twice as long, the bytes are the same."""
    pairs = torch.arange(24, dtype=torch.uint8).view(4, 6)
    file = opened(tmp_path, {"w": pairs.view(torch.float4_e2m1fn_x2)})
    weights = file.tensors(file.root)
    spec = weights.specs["w"]
    assert (spec.dtype.name, spec.shape, spec.nbytes) == ("F4", (4, 12), 24)
    assert read_range(weights, "w", 0, 24) == bytes(range(24))


@pytest.mark.parametrize("legacy", [False, True])
def test_complex_numbers_of_both_sizes(legacy: bool, tmp_path: Path) -> None:
    """complex64 and complex128, conjugated and negated lazily, read as the numbers they are."""
    for dtype in (torch.complex64, torch.complex128):
        wave = torch.randn(3, 4, dtype=dtype)
        tensors = {"w": wave, "conj": wave.conj(), "neg": torch._neg_view(wave.t()), "part": wave.clone().conj().imag}
        file = opened(tmp_path, tensors, legacy=legacy)
        weights = file.tensors(file.root)
        for name, tensor in tensors.items():
            size, count = tensor.element_size(), tensor.numel()
            for first, last in combinations_with_replacement(range(0, count + 1, 3), 2):
                whole = stored_bytes(tensor)
                assert read_range(weights, name, first * size, last * size) == whole[first * size : last * size]


def test_every_checkpoint_shares_the_tables_of_the_first() -> None:
    """The names of a thousand equal checkpoints are kept once; one with another order keeps its own."""
    one, two, other = (
        file_of(a=24).tensors({name: ref("float32", (6,), (1,)) for name in order}) for order in ("wv", "wv", "vw")
    )
    two.share(one)
    other.share(one)
    assert two.numbers is one.numbers
    assert two.specs is one.specs
    assert other.numbers is not one.numbers
    assert [read_range(each, "v", 0, 24) for each in (one, two, other)] == [DATA[:24]] * 3
