"""Every byte is read once, and any number of threads gives the same numbers."""

from __future__ import annotations

import pytest

from ema_cli.comparing import measure as measure_module
from ema_cli.comparing.comparison import compare, measure_layers
from ema_cli.comparing.layers import order_by_layer
from ema_cli.comparing.measure import comparable_names, measure
from ema_cli.errors import CheckpointError
from tests.comparing.models import model
from tests.folding.in_memory import checkpoint


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and stretches that a small tensor has many of."""
    monkeypatch.setattr(measure_module, "_BLOCK", 64)
    monkeypatch.setattr(measure_module, "_STRETCH", 640)


@pytest.mark.slow
def test_the_number_of_threads_changes_no_bit(small_blocks: None):
    """One thread and seven give the same float64 numbers, in the same order."""
    one, others = checkpoint(model(1)), [checkpoint(model(seed)) for seed in (2, 3, 4)]
    names = comparable_names(one, others)

    def told(threads: int) -> list[object]:
        return [
            (tied, sums.squares.tolist(), sums.products.tolist(), sums.largest.tolist(), sums.equal.tolist())
            for tied, sums in measure(one, others, names, threads=threads)
        ]

    assert told(1) == told(7) == told(2)


@pytest.mark.slow
def test_every_byte_is_read_once(small_blocks: None):
    """One pass over all checkpoints, however many there are; tied tensors are read once, and told under each name."""
    ties = {"layers.2.tied": "layers.2.weight"}
    tensors = [{**model(seed), "layers.2.tied": model(seed)["layers.2.weight"]} for seed in range(4)]
    one, *others = [checkpoint(each, ties=ties) for each in tensors]
    steps: list[tuple[int, int]] = []
    layers = order_by_layer(comparable_names(one, others))
    found = list(measure(one, others, list(layers), threads=3, progress=lambda *step: steps.append(step)))
    assert ("layers.2.tied", "layers.2.weight") in [tied for tied, _ in found]
    for each in (one, *others):
        for name, reads in each.tensors.reads.items():
            assert (reads == (0 if name == "layers.2.weight" else 1)).all(), name
    assert (
        steps[-1][0]
        == steps[-1][1]
        == sum(int(r.sum()) for each in (one, *others) for r in each.tensors.reads.values())
    )


@pytest.mark.slow
def test_many_are_measured_as_each_alone(small_blocks: None):
    """The distances of one from several, by layer and in total, are to the bit those of the comparisons one by one."""
    one, others = checkpoint(model(1)), [checkpoint(model(seed), f"step-{seed}") for seed in (2, 3)]
    layers = order_by_layer(comparable_names(one, others))
    total, parts = measure_layers(one, others, layers, threads=2)
    for at, other in enumerate(others):
        alone = compare(one, other)
        assert total[at] == alone.total.distance
        assert {name: part[at] for name, part in parts.items()} == {
            name: part.distance for name, part in alone.layers.items() if part.distance
        }


def test_a_read_that_fails_ends_it():
    """An error in a thread comes out, whatever the others do."""
    broken = checkpoint(model(1))
    broken.tensors.fails_at = "layers.10.weight"
    with pytest.raises(CheckpointError):
        compare(checkpoint(model(1)), broken, threads=3)
