"""Watching, on one page: wait until a checkpoint is complete, fold it, publish the averages; again and again."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict, Unpack

from ema_cli.errors import EmaError, UsageError
from ema_cli.kinds import (
    as_count,
    as_list,
    as_number,
    as_size,
    check_flags,
    check_instance,
    check_keywords,
    check_path_kinds,
)
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time, as_time
from ema_cli.runs.options import OpenOptions
from ema_cli.storage.local_file import close_idle_files
from ema_cli.storage.location import location, look_anew
from ema_cli.storage.named_paths import check_exists
from ema_cli.storage.names import as_path
from ema_cli.watching.asked import EVERY, PATIENCE, SETTLE, Asked, Waiting
from ema_cli.watching.intake import Intake
from ema_cli.watching.looking import Lookout
from ema_cli.watching.loop import Loop
from ema_cli.watching.moments import alone
from ema_cli.watching.telling import Listener, Watched
from ema_cli.watching.waiting_list import WaitingList
from ema_cli.writing.output_options import OutputKeywords, OutputOptions
from ema_cli.writing.replacing import check_target
from ema_cli.writing.target import parse_target


class WaitingKeywords(TypedDict, total=False):
    """How `watch` waits: seconds, but for `once` and `until`; see `Waiting`."""

    every: float
    settle: float
    patience: float
    once: bool
    until: Time | str | None


def watch(
    path: str | Path,
    target: str | Path,
    recipes: Recipe | list[Recipe],
    *,
    options: OpenOptions | None = None,
    publish_every: Time | str | None = None,
    store_every: Time | str | None = None,
    restart_from: Time | str | None = None,
    waiting: WaitingKeywords | None = None,
    listener: Listener | None = None,
    threads: int | None = None,
    max_memory: int | str | None = None,
    force: bool = False,
    **form: Unpack[OutputKeywords],
) -> Watched:
    """Fold each checkpoint of a training when it is complete, and keep the averages at `target` up to date.

        watch("ckpts", "averages", [Recipe(half_life="500ba"), Recipe(half_life="2000ba")])
        watch("ckpts", "averages", Recipe(half_life="500ba"), waiting={"once": True})

    Args:
        path: the folder of the run, or the one file that a training writes again and again.
        target: as of `average`. Beside it, in NAME.watch, lies what it goes on with: the averages as `EMA.store`
            writes them.
        recipes: one for each average: a half-life, a smoothing, `power` or `uniform`, with one update interval and one
            start for all.
        options: how the run is opened.
        publish_every: the training time between two outputs, as "1000ba". Default: at each checkpoint.
        store_every: the training time between two moments that stay in NAME.watch. Default: only the newest does.
        restart_from: the clock of such a moment, to go back to it.
        waiting: seconds `every`, `settle` and `patience`; whether to end after what is there (`once`); the clock to end
            at (`until`).
        listener: is told what happens.
        threads: how many read and average at once. It does not show in the output.
        max_memory: most bytes of memory of the process, as "200MB". It does not show in the output.
        force: replace an output that was there before.
        form: `dtype`, `max_shard_size`, `like_input` and `drop`, of the `OutputKeywords`. With `like_input`, and for a
            target NAME.ckpt, NAME.watch holds the newest checkpoint, too, as a whole.

    Raises:
        UsageError: for values that make no sense, and laws that need checkpoints that are not there yet, or no more.
        RunError: where the training goes on from an earlier point, or with other tensors.
        NonFiniteError: for a NaN or infinity.
        CheckpointError: where a checkpoint cannot be read.
        OutputError: where the output cannot be written, exists without `force`, or another watch writes it.
        TypeError: for an option that there is not.
    """
    check_keywords("watch", form, OutputKeywords)
    check_path_kinds(path=path)
    check_flags(force=force)
    recipes = as_list(recipes)
    for recipe in recipes:
        check_instance(recipe, Recipe, "a recipe: Recipe(half_life='500ba')")
    if options is not None:
        check_instance(options, OpenOptions, "how the run is opened")
    given = _waiting({} if waiting is None else waiting)
    words = {"every": EVERY, "settle": SETTLE, "patience": PATIENCE, "once": False, **given}
    until = words.pop("until", None)
    asked = Asked(
        as_path(path),
        options or OpenOptions(),
        tuple(recipes),
        parse_target(target, like_input=form.get("like_input", False)),
        OutputOptions.parse(**form),
        Waiting(**words, until=_time(until, "until")),
        _time(publish_every, "publish_every"),
        _time(store_every, "store_every"),
        _time(restart_from, "restart_from"),
        None if threads is None else as_count(threads, "threads", "threads"),
        None if max_memory is None else as_size(max_memory, "max_memory"),
        force=force,
    )
    return perform(asked, listener)


def _waiting(given: object) -> dict[str, Any]:
    """Return how a caller wants it to wait."""
    names = WaitingKeywords.__annotations__
    if not isinstance(given, Mapping) or not given.keys() <= names.keys():
        raise UsageError(f"takes some of {', '.join(names)}", option="waiting", hint="as {'once': True}")
    seconds = {name: as_number(given[name], name) for name in ("every", "settle", "patience") if name in given}
    check_flags(once=given.get("once", False))
    return {**given, **seconds}


def _time(value: object, name: str) -> Time | None:
    return None if value is None else as_time(value, name)


def perform(asked: Asked, listener: Listener | None = None) -> Watched:
    """Do what is asked for; see `watch`. Whatever ends it, what was folded is published."""
    check_exists(asked.path)
    look_anew([asked.folder, asked.target.path])
    if not location(asked.folder).info().exists:
        check_target(asked.published, [], force=asked.force)
    with alone(asked.folder) as notes:
        listener = listener or Listener()
        for note in notes:
            listener.told(note)
        lookout = Lookout(asked.path, asked.opened, (asked.folder, asked.target.path), asked.keeps_whole)
        intake = Intake(asked, listener, lookout, WaitingList(asked.waiting, listener, lookout))
        loop = Loop(asked, listener, lookout, intake)
        try:
            loop.begin()
            loop.run()
        except BaseException:
            with suppress(EmaError):
                loop.recover()
            raise
        finally:
            close_idle_files()
        loop.publish()
        return loop.result()
