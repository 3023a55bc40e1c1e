"""The fold over whole checkpoints, in memory: ranges, threads, ties, dtypes, what is not finite."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from ema_cli.checkpoint import DTYPES, Checkpoint, DType, TensorSpec
from ema_cli.errors import CheckpointError, EmaError, NonFiniteError
from ema_cli.fold import Fold

NAMES = {
    torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16",
    torch.complex64: "C64", torch.complex128: "C128", torch.int64: "I64", torch.bool: "BOOL", torch.uint8: "U8",
}  # fmt: skip


class MemoryWeights:
    """Weights that lie in memory, and count how often each byte is read."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], ties: Mapping[str, str] | None = None) -> None:
        self.bytes = {name: tensor.contiguous().view(-1).view(torch.uint8).numpy() for name, tensor in tensors.items()}
        self.specs: Mapping[str, TensorSpec] = {
            name: TensorSpec(DTYPES[NAMES[tensor.dtype]], tuple(tensor.shape)) for name, tensor in tensors.items()
        }
        self.ties = ties or {}
        self.reads = {name: np.zeros(len(data), dtype=int) for name, data in self.bytes.items()}
        self.fails_at: str | None = None

    def place(self, name: str) -> Hashable:
        return self.ties.get(name, name)

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        if name == self.fails_at:
            raise CheckpointError(f"step: '{name}' cannot be read")
        self.reads[name][start : start + len(out)] += 1
        out[:] = memoryview(self.bytes[name])[start : start + len(out)]


def checkpoint(
    tensors: Mapping[str, torch.Tensor], name: str = "step-1", ties: Mapping[str, str] | None = None
) -> Checkpoint:
    return Checkpoint(name, Path(name), MemoryWeights(tensors, ties), (), "memory")


def fold(
    checkpoints: Sequence[Checkpoint], weights: Sequence[float], dtype: str | None = None, **options: object
) -> tuple[dict[str, torch.Tensor], Fold]:
    """Fold into memory and return the tensors."""
    specs = checkpoints[-1].weights.specs
    targets: dict[str, DType] = {
        name: DTYPES[dtype] if dtype and spec.dtype.kind == "float" else spec.dtype for name, spec in specs.items()
    }
    written = {name: bytearray(spec.count * targets[name].itemsize) for name, spec in specs.items()}

    def write(name: str, start: int, data: memoryview) -> None:
        written[name][start : start + len(data)] = data

    done = Fold(checkpoints, weights, targets, write, **options)  # type: ignore[arg-type]
    done.run()
    torch_dtypes = {name: dtype for dtype, name in NAMES.items()}
    tensors = {
        name: torch.frombuffer(data, dtype=torch_dtypes[targets[name].name]).view(specs[name].shape)
        for name, data in written.items()
        if data
    }
    return tensors, done


def model(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(37, 11, generator=random, dtype=torch.float64).to(dtype),
        "scalar": torch.tensor(float(seed)).to(dtype),
        "empty": torch.empty(0, 3, dtype=dtype),
        "count": torch.tensor([seed, -seed]),
        "mask": torch.tensor([seed % 2 == 0, True, False]),
    }


WEIGHTS = [0.125, 0.25, 0.1, 0.525]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64])
def test_the_average_is_that_of_float64(dtype: torch.dtype):
    """Each float type comes out within its own rounding of the float64 average; integers from the newest."""
    saved = [model(seed, dtype) for seed in range(4)]
    averaged, _ = fold([checkpoint(tensors) for tensors in saved], WEIGHTS)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    for name in ("weight", "scalar"):
        expected = sum(w * tensors[name].to(wide) for w, tensors in zip(WEIGHTS, saved, strict=True))
        tolerance = 1e-6 if dtype in (torch.float32, torch.complex64) else torch.finfo(dtype).eps
        torch.testing.assert_close(averaged[name].to(wide), torch.as_tensor(expected), rtol=tolerance, atol=tolerance)
    assert torch.equal(averaged["count"], saved[-1]["count"])
    assert torch.equal(averaged["mask"], saved[-1]["mask"])


def test_bf16_is_rounded_once():
    """Away from cancellation the error is half a unit in the last place of bf16, and a thousandth of that."""
    random = torch.Generator().manual_seed(0)
    saved = [{"weight": (torch.rand(100_000, generator=random) + 0.5).bfloat16()} for _ in range(20)]
    weights = [1 / 20] * 20
    averaged, _ = fold([checkpoint(tensors) for tensors in saved], weights)
    exact = sum(w * tensors["weight"].double() for w, tensors in zip(weights, saved, strict=True))
    assert isinstance(exact, torch.Tensor)
    unit = 2.0 ** (torch.floor(torch.log2(exact)) - 7)
    assert ((averaged["weight"].double() - exact).abs() / unit).max() <= 0.5 * 1.001


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_same_bytes_for_any_threads_and_ranges(dtype: torch.dtype):
    """Range size and number of threads do not show in the output, not even beside values that are not finite."""
    saved = [model(seed, dtype) for seed in range(4)]
    for tensors in saved:
        tensors["weight"][3, 4] = -torch.inf
        tensors["weight"][0, 0] = torch.finfo(dtype).max * (-1) ** int(tensors["scalar"].item())
    checkpoints = [checkpoint(tensors) for tensors in saved]
    reference, _ = fold(checkpoints, WEIGHTS)
    for elements, threads in ((1, 1), (7, 3), (64, 2), (1 << 17, 5)):
        again, _ = fold(checkpoints, WEIGHTS, range_elements=elements, threads=threads)
        for name, tensor in reference.items():
            assert torch.equal(tensor.view(-1).view(torch.uint8), again[name].view(-1).view(torch.uint8)), name


def test_every_byte_is_read_once_and_integers_from_the_newest_only():
    """Each byte of a float tensor is read once from each checkpoint; of an integer one from the newest alone."""
    checkpoints = [checkpoint(model(seed)) for seed in range(3)]
    _, done = fold(checkpoints, [0.5, 0.25, 0.25], range_elements=16, threads=2)
    for number, each in enumerate(checkpoints):
        for name, reads in each.weights.reads.items():  # type: ignore[attr-defined]
            expected = 1 if each.weights.specs[name].dtype.averaged or number == 2 else 0
            assert (reads == expected).all(), (number, name)
    assert done.bytes_read == done.bytes_total


def test_names_tied_everywhere_are_folded_once():
    """Tied tensors are read once and written under each name; tied in one checkpoint only, each by itself."""
    tied = [{"head": value, "embed": value.clone()} for value in (torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))]
    checkpoints = [checkpoint(tensors, ties={"head": "shared", "embed": "shared"}) for tensors in tied]
    averaged, done = fold(checkpoints, [0.5, 0.5])
    assert averaged["head"].tolist() == averaged["embed"].tolist() == [2.0, 3.0]
    assert done.bytes_read == 16
    untied = checkpoint({"head": torch.tensor([5.0, 6.0]), "embed": torch.tensor([7.0, 8.0])})
    averaged, done = fold([untied, checkpoints[1]], [0.5, 0.5])
    assert (averaged["head"].tolist(), averaged["embed"].tolist()) == ([4.0, 5.0], [5.0, 6.0])
    assert done.bytes_read == 32


@pytest.mark.parametrize(("name", "dtype"), [("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)])
def test_dtype_converts_floats_only(name: str, dtype: torch.dtype):
    """Floating tensors take the output dtype, rounded once; integers and bools keep theirs."""
    saved = [model(seed, torch.float64) for seed in range(4)]
    averaged, _ = fold([checkpoint(tensors) for tensors in saved], WEIGHTS, dtype=name)
    exact = sum(w * tensors["weight"] for w, tensors in zip(WEIGHTS, saved, strict=True))
    assert isinstance(exact, torch.Tensor)
    assert torch.equal(averaged["weight"], exact.to(dtype))
    assert averaged["count"].dtype == torch.int64
    assert averaged["mask"].dtype == torch.bool


def test_one_checkpoint_comes_out_as_it_is():
    """A single checkpoint is copied, bit for bit."""
    tensors = model(5, torch.bfloat16)
    averaged, _ = fold([checkpoint(tensors)], [1.0])
    assert all(torch.equal(averaged[name], tensors[name]) for name in averaged)


def test_nan_names_checkpoint_tensor_and_element():
    """A NaN in one checkpoint is an error that says where it is, across ranges, for one checkpoint or many."""
    bad = model(2)
    bad["weight"].view(-1)[300] = torch.nan
    with pytest.raises(NonFiniteError, match=r"^step-200: 'weight' is not finite at element 300$") as raised:
        fold([checkpoint(model(1), "step-100"), checkpoint(bad, "step-200")], [0.5, 0.5], range_elements=64)
    assert raised.value.exit_code == 6
    assert "--allow-non-finite" in (raised.value.hint or "")
    with pytest.raises(NonFiniteError, match=r"^step-200: 'weight' is not finite at element 300$"):
        fold([checkpoint(bad, "step-200")], [1.0], range_elements=64)


def test_nan_in_a_single_complex_checkpoint_names_the_element():
    """Elements are counted as the tensor has them, not in real and imaginary parts."""
    values = torch.ones(8, dtype=torch.complex64)
    values[5] = complex(1, torch.nan)
    with pytest.raises(NonFiniteError, match=r"^step-1: 'weight' is not finite at element 5$"):
        fold([checkpoint({"weight": values})], [1.0])


def test_non_finite_may_pass():
    """With leave, NaN and infinity come out where IEEE arithmetic puts them, and the tensor is named."""
    one, two = {"weight": torch.tensor([torch.nan, torch.inf, 1.0])}, {"weight": torch.tensor([1.0, 1.0, 3.0])}
    averaged, done = fold([checkpoint(one), checkpoint(two)], [0.5, 0.5], allow_non_finite=True)
    assert averaged["weight"][0].isnan()
    assert averaged["weight"][1:].tolist() == [torch.inf, 2.0]
    assert done.non_finite == {"weight"}


def test_overflow_in_the_cast_names_the_tensor():
    """An average beyond float16 is an error that names the tensor, and a wider type as the way out."""
    saved = [checkpoint({"weight": torch.tensor([1.0, 1e5])}) for _ in range(2)]
    with pytest.raises(NonFiniteError, match="'weight' is too large for F16 at element 1") as raised:
        fold(saved, [0.5, 0.5], dtype="F16")
    assert "--dtype" in (raised.value.hint or "")


def test_a_failing_read_ends_all_threads():
    """When one range fails, the error surfaces and no thread goes on."""
    checkpoints = [checkpoint(model(seed)) for seed in range(2)]
    checkpoints[0].weights.fails_at = "weight"  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match="cannot be read"):
        fold(checkpoints, [0.5, 0.5], threads=4, range_elements=1)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fold")]


def test_threads_that_cannot_be_started_are_an_error(monkeypatch: pytest.MonkeyPatch):
    """Where the system has no more threads to give, the error says so, and what to do."""

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(EmaError, match="no thread can be started") as raised:
        fold([checkpoint({"w": torch.ones(2)})] * 2, [0.5, 0.5])
    assert raised.value.hint == "use fewer --threads"
