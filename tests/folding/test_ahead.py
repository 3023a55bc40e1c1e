"""Blocks come from a store before they are folded, in long requests. Here the store is in memory."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count, islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ema_cli.errors import CheckpointError
from ema_cli.folding import reading
from ema_cli.folding.blocks import make_blocks
from ema_cli.folding.buffers import Arrival, BufferSizes, default_bytes, divide_memory, least_bytes
from ema_cli.folding.kernel.choice import chosen_kernel
from ema_cli.folding.reading import FoldReader, Stopped
from ema_cli.storage.names import StorePath
from ema_cli.storage.store.object_file import ObjectFile
from ema_cli.storage.store.object_pieces import Pieces
from tests.conftest import Cli
from tests.folding.in_memory import checkpoint, fold
from tests.storage.stores import obstore, put

_numbers = count()
STEPS = (100, 200, 300)
_KIB = 1 << 10


@pytest.fixture
def run(tmp_path: Path) -> StorePath:
    """Return the address of a run of three files of 3 MB, which lies in `tmp_path / "run"`, too."""
    folder = StorePath(f"memory://ahead-{next(_numbers)}/run")
    (tmp_path / "run").mkdir()
    for step in STEPS:
        generator = torch.Generator().manual_seed(step)
        tensors: dict[str, Any] = {f"w{n}": torch.randn(500, 500, generator=generator) for n in range(3)}
        path = tmp_path / "run" / f"step-{step}.safetensors"
        save_file({**tensors, "n": torch.tensor([step])}, path)
        put(folder / path.name, path.read_bytes())
    return folder


@pytest.fixture
def ranges(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Return a list that takes the ranges that are asked for, with the names of the objects; blocks are of 64 KiB."""
    monkeypatch.setattr("ema_cli.folding.buffers._STORED_BYTES", 64 * _KIB)
    monkeypatch.setattr("ema_cli.folding.buffers._REQUEST_BYTES", 1 << 20)
    asked, real = list[tuple[str, int, int]](), obstore.get

    def get(client: Any, key: str, *, options: Any) -> Any:
        asked.append((key, *options["range"]))
        return real(client, key, options=options)

    monkeypatch.setattr(obstore, "get", get)
    return asked


@pytest.mark.parametrize("kernel", ["any", "numpy"])
def test_each_byte_of_the_tensors_comes_once_in_long_requests(
    run: StorePath,
    tmp_path: Path,
    cli: Cli,
    ranges: list[tuple[str, int, int]],
    monkeypatch: pytest.MonkeyPatch,
    kernel: str,
):
    """Each goes on over many blocks, after that of the header. The average is that of a disk, byte for byte."""
    if kernel == "numpy":
        monkeypatch.setenv("EMA_KERNEL", "numpy")
    there, here = tmp_path / "there.safetensors", tmp_path / "here.safetensors"
    assert cli("average", run, "--profile", "uniform", "-o", there).code == 0
    assert cli("average", tmp_path / "run", "--profile", "uniform", "-o", here).code == 0
    assert there.read_bytes() == here.read_bytes()
    size = (tmp_path / "run" / "step-100.safetensors").stat().st_size
    for step in STEPS:
        own = sorted((begin, end) for key, begin, end in ranges if key.endswith(f"step-{step}.safetensors"))
        long = [(begin, end) for begin, end in own if end - begin > 300 * _KIB]
        assert long[0][0] == size - 3_000_000 - (8 if step == 300 else 0)  # the integer is the newest's
        assert all(end == begin for (_, end), (begin, _) in pairwise(long)), own
        assert len(long) == 3, own
        assert sum(end - begin for begin, end in own) <= size + 2 * 256 * _KIB


def test_requests_grow_and_the_next_is_made_before_all_of_one_has_come(
    run: StorePath, tmp_path: Path, cli: Cli, ranges: list[tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch
):
    """One thread asks for twice as much each time, as long as there is as much; it waits for no answer."""
    monkeypatch.setattr("ema_cli.folding.buffers._CONNECTIONS", {Arrival.PIECES: 1})
    monkeypatch.setattr("ema_cli.folding.buffers._MOST_CONNECTIONS", 3)
    monkeypatch.setattr("ema_cli.folding.buffers._REQUEST_BYTES", 256 * _KIB)
    monkeypatch.setattr("ema_cli.folding.feed._SOON_BYTES", 100 * _KIB)
    begun, real = list[tuple[int, int]](), ObjectFile.pieces

    def pieces(file: ObjectFile, begin: int, end: int) -> Pieces:
        return Pieces(noted(file, begin, end))

    def noted(file: ObjectFile, begin: int, end: int) -> Iterator[memoryview]:
        came, pieces = 0, real(file, begin, end)
        while came < end - begin:
            piece = pieces.receive()
            for start in range(0, len(piece), 16 * _KIB):
                if file.path.name == "step-200.safetensors":
                    begun.append((begin, came))
                yield piece[start : start + 16 * _KIB]
                came += 16 * _KIB

    def begin(_: FoldReader, read: Callable[[], memoryview]) -> Callable[[], memoryview]:
        piece = read()  # not aside, so that it comes in its turn
        return lambda: piece

    monkeypatch.setattr(ObjectFile, "pieces", pieces)
    monkeypatch.setattr(FoldReader, "begin", begin)
    there, here = tmp_path / "there.safetensors", tmp_path / "here.safetensors"
    assert cli("average", run, "--profile", "uniform", "-o", there).code == 0
    assert cli("average", tmp_path / "run", "--profile", "uniform", "-o", here).code == 0
    assert there.read_bytes() == here.read_bytes()
    end_of_last = (tmp_path / "run" / "step-200.safetensors").stat().st_size
    begins = list(dict.fromkeys(begin for begin, _ in begun))
    lengths = [later - earlier for earlier, later in pairwise(begins)]
    block = 64 * _KIB
    assert lengths[:3] == [3 * block, 8 * block, 16 * block]  # the integer's block is the newest's alone
    assert 16 * block < end_of_last - begins[3] < 32 * block  # the rest
    for begin, length in zip(begins[1:4], lengths, strict=False):
        first = begun.index((begin, 0))
        _, came = begun[first - 1]  # of the request before, when the first piece of this one had come
        assert 0 <= 100 * _KIB - (length - came - 16 * _KIB) < 16 * _KIB


def test_checksums_of_what_comes_are_those_of_a_disk(
    run: StorePath, tmp_path: Path, cli: Cli, ranges: list[tuple[str, int, int]]
):
    """What is summed up is copied to where the sum is made, in its order."""
    there, here = tmp_path / "there.safetensors", tmp_path / "here.safetensors"
    for source, out in ((run, there), (tmp_path / "run", here)):
        assert cli("average", source, "--profile", "uniform", "--checksum", "-o", out).code == 0
    found = [json.loads(Path(f"{out}.manifest.json").read_text()) for out in (there, here)]
    sums = [[each["blocks"] for each in one["inputs"]] for one in found]
    assert sums[0] == sums[1]
    assert all(sums[0])


def test_tensors_that_lie_in_another_order_come_in_the_order_of_the_file(
    tmp_path: Path, cli: Cli, ranges: list[tuple[str, int, int]]
):
    """As torch.save leaves them: one request goes over several, where each alone would be one; the bytes are equal."""
    folder = StorePath(f"memory://ahead-{next(_numbers)}/run")
    (tmp_path / "run").mkdir()
    for step in STEPS:
        tensors = {f"w{n}": torch.full((600, 300), float(step + n)) for n in (3, 1, 4, 2, 0)}
        path = tmp_path / "run" / f"step-{step}.pt"
        torch.save(tensors, path)
        put(folder / path.name, path.read_bytes())
    there, here = tmp_path / "there.safetensors", tmp_path / "here.safetensors"
    assert cli("average", folder, "--profile", "uniform", "-o", there).code == 0
    assert cli("average", tmp_path / "run", "--profile", "uniform", "-o", here).code == 0
    assert there.read_bytes() == here.read_bytes()
    for step in STEPS:
        own = [(begin, end) for key, begin, end in ranges if key.endswith(f"step-{step}.pt")]
        long = [(begin, end) for begin, end in own if end - begin > 400 * _KIB]
        assert len(long) == 4, own  # of a MiB and less, over the headers of five records
        assert sum(end - begin for begin, end in long) >= 5 * 720_000 - 400 * _KIB


def test_an_error_in_making_the_next_blocks_is_raised(
    run: StorePath, tmp_path: Path, cli: Cli, ranges: list[tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch
):
    """Whichever thread asked for them: the blocks that were made would else be all that is written."""

    def make_some(*arguments: Any) -> Any:
        yield from islice(make_blocks(*arguments), 40)
        raise CheckpointError("no more blocks")

    monkeypatch.setattr("ema_cli.folding.fold.make_blocks", make_some)
    done = cli("average", run, "--profile", "uniform", "-o", tmp_path / "out.safetensors")
    assert (done.code, "no more blocks" in done.err) == (3, True)
    assert not (tmp_path / "out.safetensors").exists()


def test_where_threads_that_read_cannot_be_started_requests_are_made_without(
    run: StorePath, tmp_path: Path, cli: Cli, ranges: list[tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch
):
    """One after another, and nothing is left out."""
    real = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name == "read_2":
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    there, here = tmp_path / "there.safetensors", tmp_path / "here.safetensors"
    assert cli("average", run, "--profile", "uniform", "-o", there).code == 0
    assert cli("average", tmp_path / "run", "--profile", "uniform", "-o", here).code == 0
    assert there.read_bytes() == here.read_bytes()


def test_what_waits_for_a_thread_is_given_up_when_the_fold_ends():
    """All threads may wait for a store that answers nothing: who waits behind them would wait for minutes, too."""
    reader, answered = FoldReader([], None), threading.Event()
    reader.read_side_by_side(1)
    reader.begin(answered.wait)
    behind = reader.begin(lambda: True)
    threading.Timer(0.1, reader.stop).start()
    late = threading.Timer(20, answered.set)
    late.start()
    with pytest.raises(Stopped):
        behind()
    late.cancel()
    answered.set()


@pytest.mark.parametrize("what", ["replaced", "deleted"])
def test_an_object_that_is_not_the_planned_one_is_an_error(run: StorePath, tmp_path: Path, cli: Cli, what: str):
    """Also where it changes between two requests that go on over several blocks."""
    gone, real = run / "step-200.safetensors", obstore.get
    seen = count()

    def get(client: Any, key: str, *, options: Any) -> Any:
        if key == gone.key and options["range"][1] - options["range"][0] > 300 * _KIB and next(seen) == 1:
            obstore.delete(client, key) if what == "deleted" else obstore.put(client, key, b"x" * 4_000_000)
        return real(client, key, options=options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(obstore, "get", get)
        patch.setattr("ema_cli.folding.buffers._STORED_BYTES", 64 * _KIB)
        patch.setattr("ema_cli.folding.buffers._REQUEST_BYTES", 1 << 20)
        done = cli("average", run, "--profile", "uniform", "-o", tmp_path / "out.safetensors")
    assert next(seen) >= 2
    fact = "disappeared" if what == "deleted" else "changed"
    assert (done.code, f"error: {gone}: {fact} while it was used" in done.err) == (3, True), done.err
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("checkpoints", [1, 2, 6, 16, 24, 48, 49, 1000])
@pytest.mark.parametrize("averages", [1, 8])
def test_buffers_for_a_store_fit_and_begin_with_some_sixteen_requests(checkpoints: int, averages: int):
    """One for each checkpoint and thread, or for a block; there are never more than 48, and memory is as asked for."""
    nbytes = default_bytes([]) * 2
    sizes = divide_memory(nbytes, 2, averages, 1, from_store=checkpoints)
    at_once = sizes.ahead or sizes.rows
    assert sizes.ahead == (checkpoints if checkpoints <= 48 else 0)
    assert sizes.most_workers * sizes.worker_bytes(averages) <= nbytes
    assert (1 if sizes.ahead else 2) <= sizes.threads <= sizes.most_workers
    assert min(16, 2 * at_once) <= sizes.threads * at_once <= sizes.most_workers * at_once <= max(48, 2 * at_once)
    assert (sizes.stretch > 1) is (checkpoints <= 48)
    assert sizes.most_readers >= sizes.most_workers * ((checkpoints + 1) if sizes.ahead else sizes.rows)


@pytest.mark.parametrize(("checkpoints", "stored"), [(49, 512), (100, 512), (200, 256), (256, 128), (257, 0)])
def test_over_connections_of_ours_each_of_256_checkpoints_has_a_long_request(checkpoints: int, stored: int):
    """What comes waits in the system, and takes no memory here but for two blocks, which are shorter then."""
    nbytes = 128 << 20
    sizes = divide_memory(nbytes, 2, from_store=checkpoints, arrives=Arrival.STRAIGHT)
    assert sizes.threads * sizes.worker_bytes() <= nbytes
    assert (sizes.ahead, sizes.threads) == ((checkpoints, 1) if stored else (0, 2))
    if stored:
        assert (sizes.most_workers, sizes.most_readers, sizes.stored_bytes) == (1, 49, stored * _KIB)
        assert sizes.stretch * sizes.stored_bytes == 16 << 20


@pytest.mark.parametrize(("checkpoints", "threads"), [(1, 32), (4, 8), (16, 2), (17, 2), (32, 1), (48, 1)])
def test_over_connections_of_ours_two_threads_receive_from_the_beginning(checkpoints: int, threads: int):
    """There are some thirty-two connections: while one thread waits for what comes, another adds."""
    sizes = divide_memory(1 << 30, 2, from_store=checkpoints, arrives=Arrival.STRAIGHT)
    assert (sizes.ahead, sizes.threads) == (checkpoints, threads)
    assert divide_memory(1 << 30, 2, from_store=checkpoints).threads == -(-16 // checkpoints)


@pytest.mark.parametrize("checkpoints", [1, 4, 16, 100])
@pytest.mark.parametrize("nbytes", [8 << 20, 40 << 20, default_bytes([]) * 2])
def test_from_the_hub_a_request_brings_a_block_of_which_there_are_copies(checkpoints: int, nbytes: int):
    """Its client gives all that it received at once: of long requests each would wait for the one before."""
    sizes = divide_memory(nbytes, 2, from_store=checkpoints, arrives=Arrival.WHOLE)
    assert (sizes.ahead, sizes.stretch, sizes.waits) == (0, 1, True)
    alone = replace(sizes, copies=0)
    assert sizes.worker_bytes() - alone.worker_bytes() == 2 * sizes.rows * sizes.stored_bytes
    assert sizes.most_workers * sizes.worker_bytes() <= nbytes


def test_with_the_least_memory_one_thread_reads_a_store():
    """Smaller buffers than these there are not, but for what comes of sixteen checkpoints."""
    sizes = divide_memory(least_bytes(), 8, from_store=16)
    assert (sizes.threads, sizes.most_workers) == (1, 1)
    assert sizes.worker_bytes() <= least_bytes() + 16 * (3 << 19)


def test_rows_are_as_long_as_what_is_stored():
    """And sums as what is summed up: so that 16-bit numbers take half the memory."""
    kernel = chosen_kernel().kernel
    if type(kernel).__name__ != "CompiledKernel":
        pytest.skip("numpy's rows are floats")
    whole = BufferSizes(1, 1, rows=8, row_bytes=1 << 20)
    half = BufferSizes(1, 1, rows=8, row_bytes=1 << 20, stored_bytes=1 << 19)
    assert whole.worker_bytes() - half.worker_bytes() == 9 << 19


class Known:
    """A pace that asks for more threads once; in half a second it knows that this was in vain."""

    was_in_vain = False

    def __init__(self) -> None:
        self._asked: float | None = None

    def note(self, reads: int, seconds: float) -> None:
        """Take as long as a store does."""
        time.sleep(2e-3)

    def wants_more(self) -> bool:
        """Return whether to start more."""
        is_first, self._asked = self._asked is None, self._asked or time.monotonic()
        self.was_in_vain = time.monotonic() - self._asked > 0.2
        return is_first


@pytest.mark.parametrize("helps", [True, False])
def test_threads_that_bring_nothing_are_given_up_again(monkeypatch: pytest.MonkeyPatch, *, helps: bool):
    """A store is asked for more at once only as long as that brings bandwidth."""
    monkeypatch.setattr(reading, "Pace", Known)
    monkeypatch.setattr(Known, "was_in_vain", property(lambda _: False, lambda *_: None)) if helps else None
    saved = [{"w": torch.full((100_000,), float(seed))} for seed in range(2)]
    threads: list[str] = []
    read = FoldReader.read

    def note(*arguments: Any) -> None:
        threads.append(threading.current_thread().name)
        read(*arguments)

    monkeypatch.setattr(FoldReader, "read", note)
    sizes = BufferSizes(threads=1, most_workers=2, rows=2, row_bytes=1 << 10, waits=True)
    found, _ = fold([checkpoint(tensors) for tensors in saved], [0.5, 0.5], sizes=sizes)
    assert torch.equal(found["w"], torch.full((100_000,), 0.5))
    assert len(set(threads)) == 2
    assert len(set(threads[-50:])) == (2 if helps else 1)
