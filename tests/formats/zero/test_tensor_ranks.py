"""Which elements each rank has of a parameter: by what the converter wrote, and by maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from ema_cli.formats.cut import Part
from ema_cli.formats.pickles.values import Inert
from ema_cli.formats.zero.tensor_ranks import Unknown, map_of, parts_by_record, parts_in_map, whole_parts
from tests.formats.zero.make import PADDING, RECORDS, Saved

HOWS = {"rows": (5, 3), "columns": (3, 5), "halves": (10, 2), "padded": (5, 3), "whole": (2, 3)}


def held(parts: Sequence[Part], whole: torch.Tensor, slices: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return what ranks hold of a tensor where its elements are put by parts, -1 where none is put."""
    out = [torch.full_like(own, -1).flatten() for own in slices]
    for part in parts:
        box = whole[tuple(slice(at, at + n) for at, n in zip(part.box.offsets, part.box.shape, strict=True))]
        out[part.rank][part.start : part.start + box.numel()] = box.flatten()
    return [own.reshape(each.shape) for own, each in zip(out, slices, strict=True)]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_what_the_converter_wrote_says_it(how: str, ranks: int) -> None:
    """Each element lies where the rank has it; of a padded vocabulary what is beyond the whole is nobody's."""
    whole = torch.arange(float(torch.Size(HOWS[how]).numel())).reshape(HOWS[how])
    saved = Saved(cuts={"w": how})
    slices = saved.cut("w", whole, ranks)
    shapes = [tuple(own.shape) for own in slices]
    parts = parts_by_record(RECORDS[how], {}, tuple(whole.shape), shapes)
    parts = whole_parts(tuple(whole.shape), shapes) if parts is None else parts
    expected = [own.masked_fill(own == PADDING, -1) for own in slices]
    for mine, theirs in zip(held(parts, whole, slices), expected, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("how", ["rows", "columns", "halves", "whole"])
def test_maps_say_it(how: str) -> None:
    """The same by the maps of DeepSpeed's own tensor parallel training."""
    whole = torch.arange(float(torch.Size(HOWS[how]).numel())).reshape(HOWS[how])
    saved = Saved(groups=[{"w": whole}], cuts={"w": how}, dtype=torch.float32)
    slices = saved.cut("w", whole, 2)
    found = map_of({"universal_checkpoint_info": {"affine_map": {"params": {"^w$": saved.map_of("w", 2)}}}}, "w")
    assert found is not None
    parts = parts_in_map(found, tuple(whole.shape), [tuple(own.shape) for own in slices])
    assert all(map(torch.equal, held(parts, whole, slices), slices))


def sub_parameters(shape: object, dimension: object = 0) -> dict[str, Any]:
    """Return what lies in a file beside a parameter that has several in it."""
    state = {"patterns": ["^w$"], "shape": shape, "partition_dim": dimension}
    return {"sub_param_shape": Inert("deepspeed.checkpoint.universal_checkpoint.SubparamShape", state=state)}


@pytest.mark.parametrize("widths", [None, [[1, 3], [2, 0]]])
def test_sub_parameters_of_different_lengths(widths: list[list[int]] | None) -> None:
    """Each rank has its stretch of each: equal ones, or those that are recorded."""
    whole = torch.arange(12.0).reshape(6, 2)
    cut = [[2, 2], [1, 1]] if widths is None else widths
    ends = [whole[:4].split(cut[0]), whole[4:].split(cut[1])]
    slices = [torch.cat([sub[rank] for sub in ends]) for rank in (0, 1)]
    root = {"universal_checkpoint_info": {"sub_param_shard_widths": {} if widths is None else {"^w$": widths}}}
    parts = parts_by_record(sub_parameters(((4, 2), 2)), root, (6, 2), [tuple(own.shape) for own in slices])
    assert parts is not None
    assert all(map(torch.equal, held(parts, whole, slices), slices))


RECORDED: dict[str, tuple[dict[str, Any], str]] = {
    "no such dimension": ({"cat_dim": 2}, "none of its dimensions"),
    "a text": ({"cat_dim": "0"}, "none of its dimensions"),
    "the other dimension": ({"cat_dim": 1}, "a rank has"),
    "too many within": ({"cat_dim": 0, "param_n_sub_params": 1 << 40}, "does not divide"),
    "none within": ({"cat_dim": 0, "param_n_sub_params": 0}, "does not divide"),
    "no parameters within": (sub_parameters(None), "is not read"),
    "another number of dimensions": (sub_parameters((4,)), "is not read"),
    "negative lengths": (sub_parameters(((-4, 8), 2)), "is not read"),
    "other lengths": (sub_parameters(((3, 3), 2)), "nothing says"),
    "too long": (sub_parameters(((4, 4), 2)), "not .* together"),
}


@pytest.mark.parametrize("label", RECORDED)
def test_what_does_not_fit_is_not_believed(label: str) -> None:
    """Whatever a file says, the parts are those of the shapes that are there."""
    record, fact = RECORDED[label]
    with pytest.raises(Unknown, match=fact):
        parts_by_record(record, {}, (4, 2), [(2, 2), (2, 2)])


MAPPED: dict[str, tuple[dict[str, Any], str]] = {
    "another shape": ({"logical_shape": [2, 4]}, "another shape"),
    "no shape": ({"logical_shape": None}, "not read"),
    "too many ranks": ({"ranks": dict.fromkeys(range(3))}, "another shape"),
    "no ranks": ({"ranks": []}, "another shape"),
    "no pieces": ({"ranks": {0: {}, 1: {}}}, "not read"),
    "a scale": ({"scale": 0.5}, "divided"),
    "a negative place": ({"source": [-1, [2, 1]]}, "not read"),
    "a place outside": ({"source": [6, [2, 1]]}, "not lie in order"),
    "strides": ({"source": [0, [1, 4]]}, "not lie in order"),
    "strides of its own": ({"dest": [0, [1, 2]]}, "not lie in order"),
    "an endless shape": ({"shape": [1 << 40, 1 << 40]}, "not lie in order"),
    "another place of its own": ({"dest": [1, [2, 1]]}, "one after another"),
}


@pytest.mark.parametrize("label", MAPPED)
def test_a_map_that_does_not_fit_is_not_believed(label: str) -> None:
    """Nor is what a map says, before each of its numbers was looked at."""
    change, fact = MAPPED[label]
    found = Saved(groups=[{"w": torch.ones(4, 2)}], cuts={"w": "rows"}).map_of("w", 2)
    target = found if change.keys() <= found.keys() else found["ranks"][0]["pieces"][0]
    target |= change
    with pytest.raises(Unknown, match=fact):
        parts_in_map(found, (4, 2), [(2, 2), (2, 2)])
