"""Recipes in words: the same ones at the terminal, in a report, in a job's summary and in a model card."""

from __future__ import annotations

from collections.abc import Sequence

from ema_cli.law.recipe import Recipe
from ema_cli.law.time import interval_text

_PLURALS = {"half-life": "half-lives"}


def recipes_line(recipes: Sequence[Recipe]) -> str:
    """Return the line above the weights of plans: `With half-lives 25ba, 50ba, update interval 1ba:`.

    The recipes differ in the value of their law, or in where they stop.
    """
    words = [recipe.law.words() for recipe in recipes]
    noun = words[0].noun
    values = dict.fromkeys(word.value for word in words)
    nouns = noun if len(values) == 1 else _PLURALS.get(noun, f"{noun}s")
    intervals = dict.fromkeys(interval_text(recipe.interval) for recipe in recipes)
    correction = ", bias correction" if recipes[0].bias_correction else ""
    return f"With {nouns} {', '.join(values)}, update interval {' or '.join(intervals)}{correction}:"


def recipe_details(recipe: Recipe) -> list[str]:
    """Return the law, its interval and its correction one by one: `half-life 50ba`, `update interval 1ba`."""
    correction = ["bias correction"] if recipe.bias_correction else []
    return [*recipe.law.words().details, f"update interval {interval_text(recipe.interval)}", *correction]


def recipe_phrase(recipe: Recipe) -> str:
    """Return the recipe for a sentence: `with a half-life of 50ba and an update every 1ba`."""
    return f"with {recipe.law.phrase(recipe.interval)}"
