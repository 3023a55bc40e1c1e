"""Which elements of a tensor are in a sample."""

from __future__ import annotations

from itertools import pairwise

import pytest

from ema_cli.folding.sample import Sample


@pytest.mark.parametrize("count", [0, 1, 7, 65_535, 65_536])
def test_a_short_tensor_is_taken_whole(count: int):
    """What is not longer than a sample needs no places."""
    assert Sample("s").ranges("a", count) == ((0, count),)


@pytest.mark.parametrize("count", [*range(65_537, 65_560), 100_003, 1 << 20, 10**12 + 5])
@pytest.mark.parametrize("seed", ["", "s", "\ud800"])
def test_a_long_tensor_has_its_beginning_its_end_and_places_between(count: int, seed: str):
    """Stretches are in order, overlap nowhere, begin at whole bytes of any dtype, and are no more than is said."""
    sample = Sample(seed)
    ranges = sample.ranges("a", count)
    assert ranges[0][0] == 0
    assert sum(ranges[-1]) == count
    assert all(begin + taken < after for (begin, taken), (after, _) in pairwise(ranges))
    assert all(begin % 8 == 0 for begin, _ in ranges)
    assert 2 * 4096 - 8 < sum(taken for _, taken in ranges) <= sample.most_elements


def test_places_follow_from_the_seed_and_the_name():
    """The same seed gives the same places; another one, and another tensor, gives others. Without one it is random."""
    places = Sample("s").ranges("a", 10**9)
    assert places == Sample("s").ranges("a", 10**9)
    others = (Sample("t").ranges("a", 10**9), Sample("s").ranges("b", 10**9))
    assert all(len(set(places) & set(other)) == 2 for other in others)  # beginning and end
    assert Sample.of(None).seed != Sample.of(None).seed
    assert Sample.of("s") == Sample("s")


def test_any_element_can_be_in_a_sample():
    """No part of a tensor is out of reach: what is changed there is found by some seed."""
    count, seeds = 200_000, 200
    seen = dict.fromkeys([0, 4096, 4097, *range(5000, count, 5000), count - 4097, count - 1], 0)
    for seed in range(seeds):
        for begin, taken in Sample(str(seed)).ranges("a", count):
            for element in seen:
                seen[element] += 0 <= element - begin < taken
    assert all(times / seeds > 0.15 for times in seen.values())  # 14 stretches of 200,000 elements are 0.25
