"""Names of files that are parts of one model, as trainers give them: each differs in the number of a rank or part.

First the tables, to be read as a page, then the function that applies them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import product
from math import prod

from ema_cli.formats.trainers.folders import SHARD
from ema_cli.formats.trainers.names import name_clocks
from ema_cli.text import lazy_pattern

# After these words the number is that of a part. tp, pp, mp, sdp: kinds of parallel training.
_WORDS = r"(?:[a-z]+[-_])*rank|(?:model[-_]?)?shard|model[-_]?part|mp|tp|pp|sdp|consolidated"
_NUMBERED = lazy_pattern(rf"(?:^|[-_.])(?:{_WORDS})[-_.]?(\d{{1,5}})(?=[-_.]|$)", re.IGNORECASE)
# The end of a name that somebody gave to a run, or to a folder of runs: exp_shard0. Parts have no other words.
_CALLED = lazy_pattern(r"^(?!model[-_.]).+[-_.]shard[-_.]?\d{1,5}$", re.IGNORECASE)
# Before the number, where ranks cut tensors or have different ones: each is then a part.
CUTTING = lazy_pattern(r"(?:^|[-_.])(?:tp|pp|mp|model[-_]?part)(?:[-_.]?rank)?[-_.]?\d", re.IGNORECASE)
_OF = lazy_pattern(r"(?:^|[-_.])(?:([a-z_]*)[-_.]?)(\d{1,4})[-_]?of[-_]?(\d{1,4})(?=[-_.]|$)", re.IGNORECASE)
# From 0 on, of as many as stand before them: verl's model_world_size_4_rank_0.pt.
_WORLD = lazy_pattern(r"world[-_]?size[-_.]?(\d{1,5})[-_.]rank[-_.]?(\d{1,5})(?=[-_.]|$)", re.IGNORECASE)
# Before "1-of-5" they say that it is no part: a moment of the training, or a model trained on other data.
_NO_PARTS = lazy_pattern(
    r"(?:ep|epoch|ba|batch|step|iter|iteration|fold|split|cv|seed|trial|run|phase|stage)s?$", re.IGNORECASE
)
# Who names the files of ranks so.
RANK_FILES = ((lazy_pattern(r"^model_world_size_\d+_rank_\d+\.pt$"), "verl"),)
RANK_CONFIG = "huggingface"  # the folder beside such files with configuration and tokenizer
# The trainers' own programs that put such parts together, by the names of the parts.
CONVERTERS = (
    (lazy_pattern(r"^consolidated\.\d+\."), "transformers' convert_llama_weights_to_hf.py (Llama), or the model's own"),
    (lazy_pattern(r"tp-rank-\d+-of-\d+"), "nanotron's examples/llama/convert_nanotron_to_hf.py"),
    (lazy_pattern(r"^rank\d+\.pt$"), "OLMo's scripts/unshard.py"),
    (lazy_pattern(r"model_part-\d+"), "metaseq's python -m metaseq.scripts.convert_to_singleton"),
    (lazy_pattern(r"(?:tp|mp)_rank_\d+"), "Megatron's tools/checkpoint, or NeMo's megatron_change_num_partitions.py"),
)
_MAX_PARTS = 1 << 14  # of one model
_OWN_CONVERTER = "the trainer's own converter"


def converter(name: str) -> str:
    """Return what puts the parts together of which one has this name."""
    return next((program for pattern, program in CONVERTERS if pattern.search(name)), _OWN_CONVERTER)


def parts_of(name: str, is_there: Callable[[str], bool]) -> tuple[str, ...]:
    """Return the names of all parts of the model of which `name` is one, in order; none if it is a model by itself.

    Parts are numbered from 0 without a gap. Where a name says of how many it is one, parts may be missing, and the
    numbers may begin with 1 unless they are those of ranks, of which there may be one alone.

    Args:
        name: the name of a file.
        is_there: whether a file of a name is in its folder.
    """
    if SHARD.search(name):
        return ()  # an index tells more
    worlds = {match.span(2): int(match[1]) for match in _WORLD.finditer(name)}
    places = {match.span(2): int(match[3]) for match in _OF.finditer(name) if not _NO_PARTS.search(match[1])} | worlds
    places |= {match.span(1): 0 for match in _NUMBERED.finditer(name) if not _overlaps(match.span(1), places)}
    if not places:
        return ()  # as mostly
    texts = [
        _numbers(name, place, total, is_there, from_zero=not total or place in worlds)
        for place, total in sorted(places.items())
    ]
    if prod(map(len, texts)) > _MAX_PARTS:
        return ()
    cuts = [0, *(edge for place in sorted(places) for edge in place), len(name)]
    between = [name[start:end] for start, end in zip(cuts[::2], cuts[1::2], strict=True)]
    names = tuple("".join(_zipped(between, numbers)) for numbers in product(*texts))
    return names if len(names) > 1 or worlds else ()


def is_called(folder: str, inner: Iterable[str]) -> bool:
    """Return whether a folder's name is one that somebody gave, and no rank's, though it ends in the number of a shard.

    Args:
        folder: its name.
        inner: names of what is in it: a run has the moments of its training there.
    """
    return bool(_CALLED.search(folder)) and any(name_clocks(name).clocks for name in inner)


def _overlaps(span: tuple[int, int], others: dict[tuple[int, int], int]) -> bool:
    return any(span[0] < end and start < span[1] for start, end in others)


def _zipped(between: list[str], numbers: tuple[str, ...]) -> list[str]:
    return [text for pair in zip(between, (*numbers, ""), strict=True) for text in pair]


def _numbers(
    name: str, place: tuple[int, int], total: int, is_there: Callable[[str], bool], *, from_zero: bool
) -> list[str]:
    """Return the numbers that parts have at one place of the name, as text; just its own if it has no neighbours."""
    start, end = place
    own = name[start:end]

    def at(number: int) -> str:
        plain, padded = str(number), str(number).zfill(end - start)
        if plain == padded or own[0] == "0" or is_there(name[:start] + padded + name[end:]):
            return padded
        return plain

    def exists(number: int) -> bool:
        return is_there(name[:start] + at(number) + name[end:])

    first = 0 if from_zero or int(own) == 0 or exists(0) else 1
    last = total - 1 + first
    while not total and exists(last + 1):
        last += 1
    return [at(number) for number in range(first, last + 1)] if first <= int(own) <= last else [own]
