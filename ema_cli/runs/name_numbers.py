"""The numbers in the names of a run's checkpoints: which of them grow over the run, and what they may count.

One name does not show it: in `resnet_batch_64_1.pt` it is the 1 that grows, as the next name tells.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from glob import escape
from itertools import pairwise

from ema_cli.checkpoint import Checkpoint
from ema_cli.dataclass import dataclass
from ema_cli.errors import option
from ema_cli.formats.trainers.names import unit_before
from ema_cli.law.time import Unit
from ema_cli.text import first_few, lazy_pattern, natural_key

# 1,000 and 1e3 and 10k are numbers here, where only the user says what is counted.
NUMBER = r"\d{1,3}(?:,\d{3})+(?!\d)|\d+(?:\.\d+)?(?:e\d{1,2}(?![a-z\d])|[kmb](?![a-z\d]))?"
_NUMBER = lazy_pattern(NUMBER, re.IGNORECASE)
# A date in one of the usual orders, with the time of the day if that shows; or seconds since 1970.
_MONTH, _DAY, _TIME = (
    r"(?:0[1-9]|1[0-2])",
    r"(?:0[1-9]|[12]\d|3[01])",
    r"(?:[01]\d|2[0-3])[-:h.][0-5]\d(?:[-:m.][0-5]\d)?",
)
_DATE_TEXT = (
    r"(?<!\d)1[4-9]\d{8}(?!\d)"
    rf"|(?<!\d)(?:(?:19|20)\d\d[-_.]?{_MONTH}[-_.]?{_DAY}|{_DAY}[-_.]{_MONTH}[-_.](?:19|20)\d\d"
    rf"|(?<![a-z])(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*[-_ ]?{_DAY})(?:[-_+T ]{_TIME})?(?!\d)"
)
_DATE = lazy_pattern(_DATE_TEXT, re.IGNORECASE)
_TIME_OF_DAY = lazy_pattern(r"(?:[01]\d|2[0-3])[0-5]\d[0-5]\d")
_HIDDEN = "\0"  # stands for a date
_HIDDEN_ESCAPED = re.escape(_HIDDEN)
_THOUSANDS = {"k": 3, "m": 6, "b": 9}
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Column:
    """A number that stands at one place in the names of several checkpoints, and grows.

    Attributes:
        place: matches the beginning of a name, up to the number, which is its group.
        texts: the number as it is written in the names that have it, in their natural order.
        unit: what the text before it says that it counts; None where that says nothing.
        after_date: whether a date stands before it.
    """

    place: re.Pattern[str]
    texts: tuple[str, ...]
    unit: Unit | None
    after_date: bool

    @property
    def values(self) -> list[Fraction]:
        """Return the numbers, in the natural order of the names."""
        return [number(text) for text in self.texts]

    @property
    def shown(self) -> str:
        """Return the first few numbers, for a message."""
        texts = sorted(dict.fromkeys(self.texts), key=number)
        return first_few(texts, _SHOWN)

    @property
    def is_time(self) -> bool:
        """Return whether this is the time of the day, after a date."""
        return self.after_date and all(_TIME_OF_DAY.fullmatch(text) for text in self.texts)

    @property
    def is_whole(self) -> bool:
        """Return whether these are integers: a metric mostly is not."""
        return all(value.denominator == 1 for value in self.values)

    @property
    def is_even(self) -> bool:
        """Return whether the numbers, in order, are equally far apart."""
        values = sorted(set(self.values))
        return len({newer - older for older, newer in pairwise(values)}) <= 1

    @property
    def rises(self) -> bool:
        """Return whether the number never falls, in the natural order of the names."""
        return all(older <= newer for older, newer in pairwise(self.values))

    def value(self, name: str) -> Fraction | None:
        """Return the number in a name, None where it has none at this place."""
        match = self.place.match(name)
        return number(match[1]) if match else None


@dataclass(frozen=True, slots=True)
class NameNumbers:
    """The numbers that grow in some names.

    Attributes:
        texts: what stands before, between and after the numbers that grow; a date is one character.
        growing: the numbers that grow.
    """

    texts: tuple[str, ...]
    growing: tuple[Column, ...]

    @classmethod
    def of(cls, names: Iterable[str]) -> NameNumbers:
        """Look at the names of a run's checkpoints. What most of them have in common, the numbers aside, counts."""
        ordered = sorted(names, key=natural_key)
        groups: dict[tuple[str, ...], list[list[str]]] = {}
        for name in ordered:
            shown = _DATE.sub(_HIDDEN, name)
            groups.setdefault(tuple(_NUMBER.split(shown)), []).append(_NUMBER.findall(shown))
        template, rows = max(groups.items(), key=lambda group: len(group[1]), default=(("",), []))
        texts, growing, place = [template[0]], list[Column](), re.escape(template[0])
        for at, after in enumerate(template[1:]):
            written = rows[0][at]
            column = _column(f"{place}({NUMBER})", ordered, texts[-1])
            grows = len(set(column.texts)) > 1 or len(ordered) == 1
            if grows:
                growing.append(column)
                texts.append(after)
            else:
                texts[-1] += f"{written}{after}"
            place += (f"(?:{NUMBER})" if grows else re.escape(written)) + re.escape(after)
        return cls(tuple(texts), tuple(growing))

    @property
    def columns(self) -> list[Column]:
        """Return the numbers that may be clocks.

        Not a time after a date, not what stands there twice, and no decimals where there are integers.
        """
        once = {column.texts: column for column in self.growing}.values()
        likely = [column for column in once if not column.is_time] or list(once)
        return [column for column in likely if column.is_whole] or likely

    def column(self, unit: Unit) -> Column | None:
        """Return the number that counts in a unit, by the words before it, or as the only one that is left."""
        named = [column for column in self.columns if column.unit is unit]
        nameless = [column for column in self.columns if column.unit is None]
        return named[-1] if named else nameless[0] if len(nameless) == 1 else None

    def offer(self, unit: Unit) -> str | None:
        """Return the value of --name-clock with which the names give clocks in a unit; None where none would."""
        if self.column(unit) is not None:
            return str(unit)
        fields = {id(column): column.unit for column in self.columns if column.unit is not None}
        nameless = sorted(
            (column for column in self.columns if column.unit is None),
            key=lambda column: (len(set(column.texts)), max(column.values)),
        )
        if not nameless:
            return None
        if unit is Unit.EPOCH or (len(nameless) == 2 and all(column.rises for column in nameless)):
            fields[id(nameless[0])] = Unit.EPOCH
        if unit is not Unit.EPOCH:
            fields[id(nameless[-1])] = unit
        return self._pattern(fields)

    def _pattern(self, fields: Mapping[int, Unit]) -> str:
        """Return the names as a pattern: of the numbers that grow, some give clocks, and the others may be anything."""
        shown = self.texts[0]
        for column, after in zip(self.growing, self.texts[1:], strict=True):
            shown += (f"{{{fields[id(column)]}}}" if id(column) in fields else "*") + after
        return shown.replace(_HIDDEN, "*")


NOTHING = NameNumbers(("",), ())


def _column(place: str, names: Sequence[str], before: str) -> Column:
    """Return the number at a place in the names; `before` is the text that stands before it."""
    pattern = re.compile(place.replace(_HIDDEN_ESCAPED, f"(?:{_DATE_TEXT})"), re.IGNORECASE)
    matches = [match for name in names if (match := pattern.match(name))]
    inner = before.rpartition("/")[2]
    after_date = inner.rstrip("-_T ").endswith(_HIDDEN)
    return Column(pattern, tuple(match[1] for match in matches), unit_before(inner), after_date)


def advise_name_clock(
    checkpoints: Sequence[Checkpoint],
    unit: Unit,
    mention: Callable[[str, str], str] = option,
    *,
    apart: Sequence[Checkpoint] = (),
) -> str | None:
    """Return the advice to count the numbers in names, None where none grows or they are known to count otherwise.

    Args:
        checkpoints: those of the run.
        unit: what is to be counted.
        mention: names an option with its value; by default as the text of an error does.
        apart: checkpoints that this must tell apart: each needs a number of its own, which `last.ckpt` has not.
    """
    numbers = NameNumbers.of(checkpoint.name for checkpoint in checkpoints)
    offered = numbers.offer(unit)
    if offered is None:
        return None
    column = numbers.column(unit) or numbers.columns[-1]
    values = [column.value(checkpoint.name) for checkpoint in checkpoints]
    if len({column.value(checkpoint.name) for checkpoint in apart} - {None}) < len(apart):
        return None
    for other in Unit:
        if other is not unit and values == [checkpoint.clock(other) for checkpoint in checkpoints]:
            return None
    leave = [checkpoint.name for checkpoint, value in zip(checkpoints, values, strict=True) if value is None]
    if len(leave) > _SHOWN:
        return None
    without = "".join(f" {mention('exclude', escape(name))}" for name in leave)
    alone = f", without {', '.join(leave)}" if leave else ""
    said = f"{mention('name_clock', offered)}{without}"
    return f"if the numbers in the names ({column.shown}) count {unit.plural}, say so{alone}: {said}"


def number(text: str) -> Fraction:
    """Return a number as names have it: 1,000 and 1e3 and 1k are a thousand."""
    plain = text.replace(",", "").lower()
    power = _THOUSANDS.get(plain[-1], 0)
    return Fraction(f"{plain[:-1]}e{power}" if power else plain)
