"""Two checkpoints compared, against float64 written otherwise."""

from __future__ import annotations

import pytest
import torch

from ema_cli.cli.comparison_facts import comparison_facts
from ema_cli.comparing.comparison import compare
from ema_cli.comparing.layers import layer_of
from ema_cli.errors import RunError
from tests.comparing.models import check, model
from tests.folding.in_memory import checkpoint


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_distances_are_those_of_float64(dtype: torch.dtype):
    """Distance, norms, relative distance and cosine of each tensor, each layer and the whole are what float64 gives."""
    one, other = model(1, dtype), model(2)
    found = compare(checkpoint(one), checkpoint(other))
    values = [name for name in one if name not in ("count", "mask", "embed.empty")]
    for each in found.tensors:
        if each.name in values:
            check(each.distance, one, other, [each.name])
            wide = torch.complex128 if one[each.name].is_complex() else torch.float64
            largest = (one[each.name].to(wide) - other[each.name].to(wide)).abs().max()
            assert each.distance.largest == pytest.approx(largest.item(), rel=1e-13)
    for layer, part in found.layers.items():
        if layer not in ("count", "mask"):
            check(part.distance, one, other, [name for name in values if layer_of(name) == layer])
    check(found.total.distance, one, other, values)
    assert found.total.distance.largest == max(each.distance.largest for each in found.tensors if each.distance)


def test_integers_are_compared_for_equality_only():
    """A counter that differs is told as not equal, and adds to no distance."""
    one, other = model(1), model(1)
    other["count"] = other["count"] + 1000
    found = compare(checkpoint(one), checkpoint(other))
    equal = {each.name: each.equal for each in found.tensors}
    assert [name for name, same in equal.items() if not same] == ["count"]
    assert (found.total.equal, found.total.tensors) == (9, 10)
    assert found.total.distance.distance == 0
    assert found.layers["count"].distance is None


def test_equal_to_the_byte_is_more_than_equal():
    """0.0 and -0.0 are at distance 0, and not equal to the byte; nor are equal numbers of two types."""
    zeros = {"a.weight": torch.zeros(3), "b.weight": torch.ones(2)}
    other = {"a.weight": -torch.zeros(3), "b.weight": torch.ones(2, dtype=torch.bfloat16)}
    found = compare(checkpoint(zeros), checkpoint(other))
    assert [(each.equal, each.distance.distance) for each in found.tensors] == [(False, 0), (False, 0)]


def test_names_shapes_and_kinds_that_differ_are_listed():
    """Names that only one has, other shapes and other kinds are told, and the rest is compared."""
    one, other = model(1), model(2)
    del one["mask"], other["embed.wide"]
    other["layers.2.bias"] = torch.zeros(8)
    other["count"] = torch.zeros(2)
    found = compare(checkpoint(one), checkpoint(other))
    assert (found.only_one, found.only_other) == (["embed.wide"], ["mask"])
    assert found.different == ["count", "layers.2.bias"]
    assert comparison_facts(found)["different"][1] == {"name": "layers.2.bias", "a": "BF16 [7]", "b": "F32 [8]"}
    assert found.total.tensors == 6


def test_nothing_to_compare_is_an_error():
    """Two models without a tensor in common do not fit together."""
    with pytest.raises(RunError, match="no tensor that can be compared") as caught:
        compare(checkpoint({"a": torch.zeros(2)}), checkpoint({"b": torch.zeros(2)}))
    assert caught.value.hint
    with pytest.raises(RunError, match=r"'a' is F32 \[2\], and F32 \[3\]"):
        compare(checkpoint({"a": torch.zeros(2)}), checkpoint({"a": torch.zeros(3)}))
