"""Composer's EMA algorithm with the averages of ema-cli. Imports composer; nothing else in ema_cli imports it.

In checkpoints by Composer's EMA, `state.model` holds the averages and `state.algorithms` the training weights, so that
loading the model gives the average. This algorithm does the same, and marks it in the same way.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from composer.callbacks import CheckpointSaver
from composer.core import Algorithm, Event, State
from composer.core import Time as ComposerTime
from composer.utils import dist, format_name_with_dist
from torch import Tensor, nn

from ema_cli.errors import RunError, UsageError
from ema_cli.integrations.arguments import EMAArguments
from ema_cli.integrations.gathering import gather
from ema_cli.law.time import Unit
from ema_cli.online import ema as online
from ema_cli.online.sharded import cut_like, local, placed_like
from ema_cli.online.state import StateDict
from ema_cli.online.store import Offload
from ema_cli.online.tracks import Numbers, Times

FOLDER = "ema"  # next to the checkpoints: the folder for EMA.store
_CHECKPOINTS = (Event.BATCH_CHECKPOINT, Event.EPOCH_CHECKPOINT, Event.ITERATION_CHECKPOINT)
_STATE = "ema_cli"  # key in the algorithm's state for the data that Composer's own EMA does not have


class _Default(str):
    """The default half-life, which differs from the same value given by a caller."""

    __slots__ = ()


_HALF_LIFE = _Default("1000ba")


class EMA(Algorithm):
    """Averages of the model that a Trainer trains; takes the place of `composer.algorithms.EMA`.

        trainer = Trainer(model=model, algorithms=[EMA(half_life="50ba")], save_folder="ckpts", ...)

    As with Composer's, the average is evaluated and saved into the checkpoints of `save_folder`, with the training
    weights in addition. These are back in the model at the next event of any kind, so also for predictions and at the
    end of `fit`. Of several averages the first is evaluated and saved; all of them resume.

    `ema` is the EMA of the current training, or of the last one.

    Args:
        half_life, smoothing, update_interval: as for `ema_cli.EMA`.
        ema_start: the clock at which the average begins; also in `dur`, as a share of the whole training.
        train_with_ema_weights, offload: as for `ema_cli.EMA`.
        store: a folder in which each checkpoint stores all averages, for `ema-cli average --from stored`. Default: if
            there are several averages, `ema` in the folder of the checkpoints.
        change_half_life: allow resuming a training with another half-life, interval or start.

    Raises:
        UsageError: for values or combinations that make no sense.
    """

    def __init__(
        self,
        half_life: Times | None = _HALF_LIFE,
        smoothing: Numbers | None = None,
        ema_start: str = "0.0dur",
        update_interval: str | None = None,
        *,
        train_with_ema_weights: bool = False,
        offload: Offload = None,
        store: str | Path | None = None,
        change_half_life: bool = False,
    ) -> None:
        if half_life is None and smoothing is None:
            raise UsageError("either half_life or smoothing must be given", hint="as half_life='1000ba'")
        if half_life is _HALF_LIFE and smoothing is not None:
            half_life = None
        self._starts_at = _parse_duration(ema_start)
        start = ema_start if self._starts_at is None else "0ba"
        self.arguments = EMAArguments(
            half_life=half_life,
            smoothing=smoothing,
            ema_start=start,
            update_interval=update_interval,
            train_with_ema_weights=train_with_ema_weights,
            offload=offload,
            keep_first=None if store is None else True,
        )
        self._update_event = Event.EPOCH_END if self.arguments.tracks.unit is Unit.EPOCH else Event.BATCH_END
        self._folder = None if store is None else Path(store)
        self._change_half_life = change_half_life
        self._saved: StateDict | None = None  # a state to load after the model
        self._applied = ExitStack()
        self._applied_at: Event | None = None
        self.ema: online.EMA | None = None

    @property
    def ema_weights_active(self) -> bool:
        """Return whether the model holds the average at present."""
        return self._applied_at is not None

    @property
    def ema_started(self) -> bool:
        """Return whether the average has begun."""
        return self.ema is not None and self.ema.started

    def match(self, event: Event, state: State) -> bool:
        """Return whether `apply` has something to do at this event."""
        if event is Event.INIT or self._saved is not None or self._is_over(event):
            return True
        if event is self._update_event:
            return self._may_begin(state)
        return self.ema_started and (event is Event.EVAL_START or bool(_savers(event, state)))

    def apply(self, event: Event, state: State, logger: Any) -> None:
        """Update the averages, or exchange them for the training weights."""
        if event is Event.INIT:
            self.ema = self.arguments.make(state.model)
        self._load()
        if self._is_over(event):
            # First: an update at the end of an epoch may follow the checkpoint of its last batch.
            self._applied_at = None
            self._applied.close()
        if event is self._update_event and self._may_begin(state):
            now = state.timestamp
            # Samples and tokens stay at 0 if the loader does not count them.
            sample, token = now.sample.value or None, now.token.value or None
            self._live.update(batch=now.batch.value, epoch=now.epoch.value, sample=sample, token=token)
        elif event is Event.EVAL_START:
            self._show(event)
        elif savers := _savers(event, state):
            self._store(savers[0], state)
            self._show(event)

    def get_ema_model(self, model: nn.Module | None = None) -> nn.Module:
        """Replace the parameters and buffers of `model` (default: the one that trains) by the average; return it.

        Raises:
            UsageError: while the model that trains holds the average anyway, and before the average has begun.
        """
        return self._live.get_ema_model(model, self._live.names[0])

    def get_training_model(self, model: nn.Module | None = None) -> nn.Module:
        """Replace the parameters and buffers of `model` by the training weights, while the average is in the model.

        Raises:
            UsageError: while the model holds the training weights anyway.
        """
        return self._live.get_training_model(model)

    def state_dict(self) -> StateDict:
        """Return the state in the form of Composer's own EMA, plus all averages in full precision and the clocks."""
        state: StateDict = super().state_dict()
        state |= {"ema_weights_active": self.ema_weights_active, "ema_started": self.ema_started}
        ema = self.ema
        if ema is None:
            return state
        saved = ema.state_dict()
        store = ema.averages.store()
        slots = (*store.tracked.averaged, *store.tracked.copied)
        if self.ema_weights_active:
            assert ema.averages.training is not None
            others = ema.averages.training
            for slot in store.tracked.averaged:
                averages = saved["averages"][ema.names[0]]
                if averages[slot.name].dtype is slot.dtype:
                    averages[slot.name] = (
                        slot.tensor.detach()
                    )  # the same tensor as in the model, so that a file holds it once
        else:
            others = [*store.averages[0], *store.copies]
        named: dict[bool, dict[str, Tensor]] = {True: {}, False: {}}
        for slot, part in zip(slots, others, strict=True):
            named[slot.is_parameter][slot.name] = placed_like(part.to(slot.dtype), slot.tensor)
        state["ema_model"] = {"named_parameters_dict": named[True], "named_buffers_dict": named[False]}
        state[_STATE] = saved
        # Composer saves the state of algorithms as one object, from the first process alone: so tensors must be whole.
        return gather(state, keep=dist.get_global_rank() == 0)

    def load_state_dict(self, state: StateDict, strict: bool = False) -> None:
        """Continue from a state, at the next event: the model may not be loaded yet.

        Raises:
            RunError: for a state of Composer's own EMA, which has neither clocks nor a half-life.
        """
        if _STATE not in state:
            raise RunError(
                "this is a state of Composer's own EMA, which says neither its half-life nor its clock",
                hint="finish that run with composer.algorithms.EMA, or begin anew: load_weights_only=True",
            )
        self._saved = state

    @property
    def _live(self) -> online.EMA:
        if self.ema is None:
            raise UsageError("there is no model to average yet", hint="give the algorithm to a Trainer first")
        return self.ema

    def _is_over(self, event: Event) -> bool:
        """Return whether the average is in the model, but must leave it at this event."""
        if self._applied_at is None:
            return False
        evaluates = self._applied_at is Event.EVAL_START
        return not (evaluates and event.is_eval and event is not Event.EVAL_END)

    def _may_begin(self, state: State) -> bool:
        """Return whether a start given in `dur` has come; True for other starts, which the EMA itself checks."""
        if self._starts_at is None or self.ema_started:
            return True
        elapsed = state.get_elapsed_duration()
        return elapsed is not None and elapsed.value >= self._starts_at

    def _show(self, event: Event) -> None:
        if self.ema_started and self._applied_at is None:
            self._applied.enter_context(self._live.applied(self._live.names[0]))
            self._applied_at = event

    def _store(self, saver: Any, state: State) -> None:
        """Store all averages next to a checkpoint."""
        folder = self._folder
        if folder is None and self.arguments.several:
            folder = Path(format_name_with_dist(saver.folder, state.run_name), FOLDER)
        if folder is not None and self.ema_started and not self._live.averages.mixed:
            self._live.store(folder)

    @torch.no_grad()
    def _load(self) -> None:
        """Load a saved state; also load the training weights into the model, if it was saved with the average."""
        if self._saved is None:
            return
        saved, self._saved = self._saved, None
        ema = self._live
        ema.load_state_dict(saved[_STATE], change_half_life=self._change_half_life)
        if saved["ema_weights_active"]:
            raw: dict[str, Tensor] = (
                saved["ema_model"]["named_parameters_dict"] | saved["ema_model"]["named_buffers_dict"]
            )
            store = ema.averages.store()
            slots = (*store.tracked.averaged, *store.tracked.copied)
            store.fill(None, [local(cut_like(raw[slot.name], slot.tensor)) for slot in slots])


def _savers(event: Event, state: State) -> list[Any]:
    """Return the callbacks that save a checkpoint at this event."""
    if event not in _CHECKPOINTS:
        return []
    savers = [callback for callback in state.callbacks if isinstance(callback, CheckpointSaver)]
    return [saver for saver in savers if saver.save_interval(state, event)]


def _parse_duration(start: str) -> float | None:
    """Return the share of the training that `0.5dur` means, None for other times."""
    if not isinstance(start, str) or not start.strip().lower().endswith("dur"):
        return None
    try:
        value = float(ComposerTime.from_timestring(start.strip()).value)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:
        raise UsageError(f"ema_start: '{start}' is no share of the training", hint="as 0.5dur, or in batches: 500ba")
    return value
