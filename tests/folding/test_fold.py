"""The fold over whole checkpoints, in memory: ranges, threads, ties, dtypes, what is not finite."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from ema_cli.checkpoint import Checkpoint
from ema_cli.dtypes import DTYPES
from ema_cli.errors import CheckpointError, EmaError, NonFiniteError, at_terminal
from ema_cli.folding.blocks import bytes_to_read, make_groups
from ema_cli.folding.buffers import BufferSizes
from ema_cli.folding.fold import Average
from ema_cli.folding.fold import fold as run_fold
from ema_cli.folding.reading import FoldReader
from ema_cli.folding.sink import TensorRange
from ema_cli.formats.safetensors.header import open_file
from ema_cli.storage.source import ByteSource
from tests.folding.in_memory import WEIGHTS, MemorySink, MemoryTensors, checkpoint, fold, model, small


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
    for sizes in (small(64, rows=1), small(64, 3, rows=2), small(192, 2, rows=3), small(1 << 19, 5, rows=4)):
        again, _ = fold(checkpoints, WEIGHTS, sizes=sizes)
        for name, tensor in reference.items():
            assert torch.equal(tensor.view(-1).view(torch.uint8), again[name].view(-1).view(torch.uint8)), name


def test_every_byte_is_read_once_and_integers_from_the_newest_only():
    """Each byte of a float tensor is read once from each checkpoint; of an integer one from the newest alone."""
    checkpoints = [checkpoint(model(seed)) for seed in range(3)]
    _, done = fold(checkpoints, [0.5, 0.25, 0.25], sizes=small(64, threads=2))
    for number, each in enumerate(checkpoints):
        for name, reads in each.tensors.reads.items():  # type: ignore[attr-defined]
            expected = 1 if each.tensors.specs[name].dtype.averaged or number == 2 else 0
            assert (reads == expected).all(), (number, name)
    assert done.bytes_read == sum(reads.sum() for each in checkpoints for reads in each.tensors.reads.values())  # type: ignore[attr-defined]


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
        fold([checkpoint(model(1), "step-100"), checkpoint(bad, "step-200")], [0.5, 0.5], sizes=small(256))
    assert raised.value.exit_code == 6
    assert "--exclude step-200" in (raised.value.advice(at_terminal) or "")
    assert "--allow-non-finite" in (raised.value.advice(at_terminal) or "")
    with pytest.raises(NonFiniteError, match=r"^step-200: 'weight' is not finite at element 300$"):
        fold([checkpoint(bad, "step-200")], [1.0], sizes=small(256))


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
    assert done.non_finite[0].let_through == {"weight"}


def test_every_tensor_that_is_not_finite_is_noted():
    """Also of small tensors that share a block; of an error's candidates the first element is named."""
    for dtype in (torch.float32, torch.bfloat16):
        bad = {name: torch.ones(3, dtype=dtype) for name in "abcd"}
        bad["b"][1] = bad["d"][0] = bad["d"][2] = torch.nan
        good = {name: torch.ones(3, dtype=dtype) for name in "abcd"}
        checkpoints = [checkpoint(good, "step-1"), checkpoint(bad, "step-2")]
        assert fold(checkpoints, [0.5, 0.5], allow_non_finite=True)[1].non_finite[0].let_through == {"b", "d"}
        with pytest.raises(NonFiniteError, match=r"^step-2: 'b' is not finite at element 1$"):
            fold(checkpoints, [0.5, 0.5])


def test_overflow_in_the_cast_names_the_tensor():
    """An average beyond float16 is an error that names the tensor, and a wider type as the way out."""
    saved = [checkpoint({"weight": torch.tensor([1.0, 1e5])}) for _ in range(2)]
    with pytest.raises(NonFiniteError, match="'weight' is too large for F16 at element 1") as raised:
        fold(saved, [0.5, 0.5], dtype="F16")
    assert "--dtype" in (raised.value.advice(at_terminal) or "")


def test_a_failing_read_ends_all_threads():
    """When one range fails, the error surfaces and no thread goes on."""
    checkpoints = [checkpoint(model(seed)) for seed in range(2)]
    checkpoints[0].tensors.fails_at = "weight"  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match="cannot be read"):
        fold(checkpoints, [0.5, 0.5], sizes=small(64, threads=4))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fold")]


def test_a_block_that_is_read_again_is_not_waited_for_once_the_fold_ends():
    """A store may not answer for minutes: neither the thread that asked is waited for, nor one whose turn is next."""
    reading, answered = threading.Event(), threading.Event()

    class Silent(MemoryTensors):
        def read_into(self, name: str, start: int, out: memoryview) -> None:
            if self.reads[name][start]:
                reading.set()
                assert answered.wait(60)
            super().read_into(name, start, out)

    saved = {"w": torch.full((600,), torch.nan)}
    checkpoints = [Checkpoint(name, Path(name), Silent(saved), (), "memory") for name in ("step-1", "step-2")]

    def interrupt(_done: int, _total: int) -> None:
        if reading.is_set():
            raise KeyboardInterrupt

    late = threading.Timer(20, answered.set)
    late.daemon = True
    late.start()
    with pytest.raises(KeyboardInterrupt):
        run_fold(
            checkpoints,
            [Average([0.5, 0.5], MemorySink({"w": bytearray(2400)}))],
            {"w": DTYPES["F32"]},
            sizes=small(64, threads=2),
            progress=interrupt,
        )
    was_late = answered.is_set()
    answered.set()
    assert not was_late


def test_a_write_that_takes_long_is_told_that_the_fold_ends():
    """An error in one thread lets another end that is summing up what was written: nobody waits for the sum."""
    saved = [checkpoint({name: torch.ones(300) for name in ("a", "b")}, f"step-{step}") for step in range(2)]
    writing, given_up = threading.Event(), threading.Event()

    class Slow:
        def write(self, ranges: Sequence[TensorRange], data: memoryview) -> None:
            if ranges[0].name == "a":
                writing.set()
                assert given_up.wait(60)
            else:
                assert writing.wait(60)
                raise OSError("the disk is full")

        def give_up(self) -> None:
            given_up.set()

    targets = dict.fromkeys(("a", "b"), DTYPES["F32"])
    with pytest.raises(OSError, match="the disk is full"):
        run_fold(saved, [Average([0.5, 0.5], Slow())], targets, sizes=small(300 * 4, threads=2))
    assert given_up.is_set()


def test_threads_that_cannot_be_started_are_an_error(monkeypatch: pytest.MonkeyPatch):
    """Where the system has no more threads to give, the error says so, and what to do."""

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(EmaError, match="no thread can be started") as raised:
        fold([checkpoint({"w": torch.ones(2)})] * 2, [0.5, 0.5])
    assert raised.value.advice(at_terminal) == "use fewer --threads"


@pytest.mark.slow
@given(st.data())
def test_several_averages_in_one_pass_are_those_of_one_each(data: st.DataObject):
    """Whichever checkpoints enter each, every average has the bytes that it has alone, and each input is read once."""
    count = data.draw(st.integers(1, 6))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64]))
    saved = [model(seed, dtype) for seed in range(count)]
    for tensors in saved:
        tensors["zeros"] = torch.tensor([-0.0, 0.0, -0.0]).to(dtype)
        tensors["mask-like"] = torch.tensor([-torch.inf, 1.0]).to(torch.float32)
    for _ in range(data.draw(st.integers(0, 3))):
        values = data.draw(st.sampled_from(saved))["weight"].view(-1)
        values[data.draw(st.integers(0, len(values) - 1))] = data.draw(st.sampled_from([torch.nan, torch.inf]))
    vectors = []
    for _ in range(data.draw(st.integers(1, 4))):
        entering = data.draw(st.lists(st.booleans(), min_size=count, max_size=count).filter(any))
        raw = [float(enters) * data.draw(st.floats(0.01, 1)) for enters in entering]
        vectors.append([weight / sum(raw) for weight in raw])
    checkpoints = [checkpoint(tensors) for tensors in saved]
    specs = checkpoints[-1].tensors.specs
    targets = {name: spec.dtype for name, spec in specs.items()}
    together = [{name: bytearray(spec.nbytes) for name, spec in specs.items()} for _ in vectors]
    sizes = small(data.draw(st.sampled_from([64, 256, 1 << 16])), rows=data.draw(st.integers(1, 7)))
    averages = [Average(weights, MemorySink(written)) for weights, written in zip(vectors, together, strict=True)]
    done = run_fold(checkpoints, averages, targets, sizes=sizes, allow_non_finite=True)
    groups = make_groups(checkpoints, targets, frozenset())
    newest = {max(number for number, weight in enumerate(weights) if weight) for weights in vectors}
    assert done.bytes_read == bytes_to_read(checkpoints, groups, newest)
    for weights, written in zip(vectors, together, strict=True):
        entering_only = [each for each, weight in zip(checkpoints, weights, strict=True) if weight]
        alone = {name: bytearray(spec.nbytes) for name, spec in specs.items()}
        averages = [Average([weight for weight in weights if weight], MemorySink(alone))]
        run_fold(entering_only, averages, targets, allow_non_finite=True)
        assert written == alone


def test_small_tensors_that_lie_side_by_side_are_read_together(tmp_path: Path):
    """A thousand small tensors of one type are one read of each file, and one write."""
    for step in (1, 2):
        save_file({f"t{number:04}": torch.full((8,), float(step)) for number in range(1000)}, tmp_path / f"{step}.st")
    checkpoints = [replace(checkpoint({}), tensors=open_file(tmp_path / f"{step}.st")) for step in (1, 2)]
    reads: list[int] = []
    for each in checkpoints:
        file = each.tensors.file  # type: ignore[attr-defined]
        each.tensors.file = Counted(file, reads)  # type: ignore[attr-defined]
    targets = {name: spec.dtype for name, spec in checkpoints[-1].tensors.specs.items()}
    sink = CountedSink()
    run_fold(checkpoints, [Average([0.5, 0.5], sink)], targets)
    assert reads == [32_000, 32_000]
    assert sink.writes == [np.full(8000, 1.5, dtype=np.float32).tobytes()]


class CountedSink:
    """A sink that notes the bytes of each write."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []

    def write(self, ranges: Sequence[TensorRange], data: memoryview) -> None:
        self.writes.append(bytes(data))

    def give_up(self) -> None: ...


class Counted:
    """A file that notes how many bytes each read takes."""

    def __init__(self, file: ByteSource, reads: list[int]) -> None:
        self.file, self.path, self.reads = file, file.path, reads

    def read_into(self, offset: int, out: memoryview) -> None:
        self.reads.append(len(out))
        self.file.read_into(offset, out)


@pytest.mark.slow
def test_reads_of_a_slow_disk_are_made_side_by_side():
    """Where each read takes long, more threads wait at once than there are processors; the bytes are the same."""
    saved = [{"w": torch.full((20_000,), float(seed))} for seed in range(12)]
    weights = [1 / 12] * 12
    expected, _ = fold([checkpoint(tensors) for tensors in saved], weights)
    waiting, most = 0, 0
    lock = threading.Lock()

    class Slow(MemoryTensors):
        def read_into(self, name: str, start: int, out: memoryview) -> None:
            nonlocal waiting, most
            with lock:
                waiting += 1
                most = max(most, waiting)
            time.sleep(0.01)
            super().read_into(name, start, out)
            with lock:
                waiting -= 1

    slow = [replace(checkpoint({}), tensors=Slow(tensors)) for tensors in saved]
    found, _ = fold(slow, weights, sizes=BufferSizes(threads=2, most_workers=6, rows=4, row_bytes=1024))
    assert torch.equal(found["w"], expected["w"])
    assert most > 8


@pytest.mark.slow
@pytest.mark.parametrize("most", [2, 3])
def test_threads_that_cannot_be_added_are_done_without(monkeypatch: pytest.MonkeyPatch, most: int):
    """On a slow disk more threads would help; where the system has none, or one of two, those that run finish all."""
    saved = [{"w": torch.full((20_000,), float(seed))} for seed in range(8)]
    expected, _ = fold([checkpoint(tensors) for tensors in saved], [1 / 8] * 8)
    real, started, refused = threading.Thread.start, [], []

    def start(thread: threading.Thread) -> None:
        if len(started) == most:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        started.append(thread)
        real(thread)

    class Slow(MemoryTensors):
        def read_into(self, name: str, start: int, out: memoryview) -> None:
            time.sleep(0.01)
            super().read_into(name, start, out)

    slow = [replace(checkpoint({}), tensors=Slow(tensors)) for tensors in saved]
    monkeypatch.setattr(threading.Thread, "start", start)
    found, _ = fold(slow, [1 / 8] * 8, sizes=BufferSizes(threads=2, most_workers=6, rows=4, row_bytes=1 << 11))
    assert torch.equal(found["w"], expected["w"])
    assert len(started) == most
    assert refused


@pytest.mark.slow
def test_a_fast_disk_needs_no_more_threads(monkeypatch: pytest.MonkeyPatch):
    """Where reads are quick, no thread is started beyond those asked for."""
    more: list[int] = []
    monkeypatch.setattr(FoldReader, "read_side_by_side", lambda _, threads: more.append(threads))
    saved = [checkpoint({"w": torch.full((300_000,), float(seed))}) for seed in range(4)]
    fold(saved, WEIGHTS, sizes=BufferSizes(threads=2, most_workers=6, rows=4, row_bytes=1024))
    assert not more
