"""What a tuning is asked for: the settings to evaluate, and what is the same in the recipe of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ema_cli.dataclass import dataclass
from ema_cli.errors import UsageError, option
from ema_cli.kinds import as_number
from ema_cli.law.recipe import Recipe
from ema_cli.tuning.search import TRIES, Range, Searched
from ema_cli.tuning.settings import Setting, read_setting


@dataclass(frozen=True, slots=True)
class Asked:
    """What a tuning is asked for.

    Attributes:
        searched: the settings to evaluate, or a range of them.
        fixed: the rest of each recipe, as `Recipe` takes it.
    """

    searched: Searched
    fixed: dict[str, Any]

    @classmethod
    def of(
        cls,
        *,
        half_lives: Iterable[object] = (),
        windows: Iterable[object] = (),
        profile: str | None = None,
        between: tuple[object, object] | None = None,
        tries: int | None = None,
        extrapolate: tuple[object, object] | None = None,
        extrapolate_from: object = None,
        **fixed: Any,
    ) -> Asked:
        """Read what is asked for; see `tune`.

        Raises:
            UsageError: for values or combinations that make no sense.
        """
        on_line = extrapolate is not None
        if tries is not None and between is None and not on_line:
            raise UsageError(
                f"is for {option('between')} and {option('extrapolate')}",
                option="tries",
                hint="leave it out, or give a range",
            )
        if extrapolate_from is not None and not on_line:
            raise UsageError(f"goes with {option('extrapolate')}", option="extrapolate_from", hint="leave out one")
        tries = TRIES if tries is None else tries
        named, ends = _named(half_lives, windows, profile), None if between is None else _ends(between, profile)
        if ends is not None and named:
            raise UsageError(
                f"excludes {option(named[0].option)}", option="between", hint=f"name {named[0].nouns}, or a range"
            )
        if on_line:
            if len(named) != 1:
                raise UsageError(
                    "goes on from the average of one half-life, or of one window",
                    option="extrapolate",
                    hint=f"{option('half_life', '500ba')} {option('extrapolate')} 0 1",
                )
            low, high = _factors(extrapolate)
            line = {**named[0].options(), "extrapolate_from": extrapolate_from}
            asked = cls(Range(low, high, tries), {**line, **fixed})
        elif ends is not None:
            asked = cls(Range(*ends, tries), fixed)
        else:
            _check_named(named, profile)
            asked = cls(named, fixed)
        for setting in asked.ends:
            asked.recipe(setting)  # which checks what goes together
        return asked

    @property
    def ends(self) -> Sequence[Setting]:
        """Return the settings that are known before anything is evaluated to be the outermost: both ends, or all."""
        return (self.searched.low, self.searched.high) if isinstance(self.searched, Range) else self.searched

    @property
    def first(self) -> Sequence[Setting]:
        """Return the settings that are evaluated first, whatever comes of them."""
        return self.searched.grid() if isinstance(self.searched, Range) else self.searched

    @property
    def widest(self) -> Setting:
        """Return the largest setting, whose average takes in the most checkpoints."""
        return max(self.ends, key=lambda setting: setting.number)

    def recipe(self, setting: Setting) -> Recipe:
        """Return the recipe of a candidate."""
        return Recipe(**setting.options(), **self.fixed)

    def last_checkpoint(self) -> Recipe:
        """Return the recipe of the last checkpoint alone, which is the bar to beat."""
        return Recipe(profile="uniform", last=1, start=self.fixed.get("start"), stop=self.fixed.get("stop"))


def _named(half_lives: Iterable[object], windows: Iterable[object], profile: str | None) -> list[Setting]:
    """Return the settings that are named."""
    named = [read_setting(value, "half_life") for value in _several(half_lives, "half_life")]
    if named and profile is not None:
        raise UsageError(f"excludes {option('half_life')}", option="profile", hint="leave out one")
    windows = _several(windows, "window")
    if windows and profile is None:
        raise UsageError(
            f"goes with {option('profile')}",
            option="window",
            hint=f"as {option('profile', 'linear')} {option('window', str(windows[0])[:60])}",
        )
    return named + [read_setting(value, "window", profile) for value in windows]


def _several(values: object, name: str) -> list[object]:
    """Return the values of an option that takes several."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise UsageError(f"takes several, not {values!r}", option=name, hint="as ['100ba', '1000ba']")
    return list(values)


def _ends(between: object, profile: str | None) -> tuple[Setting, Setting]:
    """Return the ends of a range: of half-lives, or of the windows of a profile."""
    ends = _several(between, "between")
    if len(ends) != 2:
        raise UsageError(f"takes two ends, not {len(ends)}", option="between", hint="as 100ba 10000ba")
    low, high = (read_setting(end, "between", profile) for end in ends)
    return low, high


def _factors(extrapolate: object) -> tuple[Setting, Setting]:
    """Return the ends of a range of factors."""
    ends = _several(extrapolate, "extrapolate")
    if len(ends) != 2:
        raise UsageError(f"takes two numbers, not {len(ends)}", option="extrapolate", hint="as 0 1")
    low, high = (Setting(as_number(end, "extrapolate")) for end in ends)
    return low, high


def _check_named(named: Sequence[Setting], profile: str | None) -> None:
    """Check settings that the user names.

    Raises:
        UsageError: for none, one that is given twice, and different units.
    """
    if not named:
        own = "half_life" if profile is None else "window"
        if profile is not None:
            Recipe(profile=profile, window="100ba")  # which refuses a profile that has none
        raise UsageError(
            f"which {'half-lives' if profile is None else 'windows'}?",
            hint=f"name some, {option(own, '100ba')} {option(own, '1000ba')}, or a range: "
            f"{option('between')} 100ba 10000ba",
        )
    own = named[0].option
    twice = next((setting for number, setting in enumerate(named) if setting in named[:number]), None)
    if twice is not None:
        raise UsageError(f"'{twice.text}' is given twice", option=own)
    if len({setting.unit for setting in named}) > 1:
        raise UsageError(f"{named[0].nouns} have different units", option=own, hint="give all in the same unit")
