"""One contract, run over every reader: what a library wrote and reads, we read byte for byte, whole and by range."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ema_cli.checkpoint import Checkpoint, Tensors
from ema_cli.formats import open_checkpoint
from tests.formats.containers import CONTAINERS, DTYPE_NAMES
from tests.formats.reading import read_all, read_range, stored_bytes


def described(tensors: Tensors) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return dtype and shape of each tensor, as the reader's specs should give them."""
    return {name: (DTYPE_NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()}


# Starting two processes that import torch takes seconds.
SLOW = {"DCP of two ranks": [pytest.mark.slow]}


@pytest.fixture(scope="module", params=[pytest.param(label, marks=SLOW.get(label, [])) for label in CONTAINERS])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Tensors]:
    """A checkpoint of each kind, opened by us, and its tensors as read by the library that wrote it."""
    path, tensors = CONTAINERS[request.param](tmp_path_factory.mktemp("contract"))
    return open_checkpoint(path), tensors


@pytest.mark.slow
def test_specs_are_those_of_the_library(case: tuple[Checkpoint, Tensors]) -> None:
    """Names, dtypes, shapes and sizes are known from the headers, and equal the library's."""
    checkpoint, tensors = case
    specs = checkpoint.tensors.specs
    assert {name: (spec.dtype.name, spec.shape) for name, spec in specs.items()} == described(tensors)
    assert all(spec.nbytes == tensors[name].numel() * tensors[name].element_size() for name, spec in specs.items())
    assert checkpoint.nbytes == sum(tensor.nbytes for tensor in tensors.values())


def test_whole_tensors_are_equal(case: tuple[Checkpoint, Tensors]) -> None:
    """Every tensor's bytes in C order are those that the library gives."""
    checkpoint, tensors = case
    found = read_all(checkpoint.tensors)
    assert [name for name in tensors if found[name] != stored_bytes(tensors[name])] == []


def test_a_checkpoint_that_travels_is_equal(case: tuple[Checkpoint, Tensors]) -> None:
    """Pickled and unpickled, as on its way to a worker, it has the same bytes."""
    checkpoint, tensors = case
    found = read_all(pickle.loads(pickle.dumps(checkpoint)).tensors)
    assert [name for name in tensors if found[name] != stored_bytes(tensors[name])] == []


@pytest.mark.slow
@given(data=st.data())
def test_any_range_is_equal(case: tuple[Checkpoint, Tensors], data: st.DataObject) -> None:
    """Any run of elements, the empty one too, reads as the same part of the whole."""
    checkpoint, tensors = case
    name = data.draw(st.sampled_from(sorted(tensors)))
    size, count = tensors[name].element_size(), tensors[name].numel()
    first = data.draw(st.integers(0, count))
    last = data.draw(st.integers(first, count))
    expected = stored_bytes(tensors[name])[first * size : last * size]
    assert read_range(checkpoint.tensors, name, first * size, last * size) == expected
    runs = checkpoint.tensors.runs(name, first * size, (last - first) * size)
    assert runs is None or b"".join(source.read(at, nbytes) for source, at, nbytes in runs) == expected


def test_the_runs_of_whole_tensors_are_their_bytes(case: tuple[Checkpoint, Tensors]) -> None:
    """Where the bytes of a tensor are known to lie in runs of files, they are there; a tensor in one place is known."""
    checkpoint, tensors = case
    for name, tensor in tensors.items():
        runs = checkpoint.tensors.runs(name, 0, tensor.nbytes)
        if runs is not None:
            assert b"".join(source.read(at, nbytes) for source, at, nbytes in runs) == stored_bytes(tensor)
        else:
            assert checkpoint.tensors.locate(name) is None


def test_tensors_share_a_place_where_they_share_their_bytes(case: tuple[Checkpoint, Tensors]) -> None:
    """Two tensors have equal places if and only if the library holds one and the same tensor for both."""
    checkpoint, tensors = case

    def same(one: torch.Tensor, other: torch.Tensor) -> bool:
        keys = [(t.data_ptr(), t.dtype, t.shape, t.stride(), t.is_conj(), t.is_neg()) for t in (one, other)]
        return keys[0] == keys[1]

    weights = checkpoint.tensors
    for one, other in combinations([name for name, tensor in tensors.items() if tensor.numel()], 2):
        assert (weights.place(one) == weights.place(other)) == same(tensors[one], tensors[other]), (one, other)


@pytest.mark.slow
def test_threads_read_at_once(case: tuple[Checkpoint, Tensors]) -> None:
    """Eight threads that read all tensors piece by piece at the same time each get the right bytes."""
    checkpoint, tensors = case

    def read_in_pieces(name: str) -> bytes:
        size, count = tensors[name].element_size(), tensors[name].numel()
        cuts = [0, count // 3, count // 2, count]
        pieces = [read_range(checkpoint.tensors, name, a * size, b * size) for a, b in pairwise(cuts)]
        return b"".join(pieces)

    names = [name for name in sorted(tensors) for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(read_in_pieces, names))
    assert [name for name, data in zip(names, found, strict=True) if data != stored_bytes(tensors[name])] == []
