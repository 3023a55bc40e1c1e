"""Averages in a training with transformers' Trainer: a callback, and a mixin for evaluation on the averages.

Imports transformers; nothing else in ema_cli imports it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback, TrainerState

from ema_cli.errors import OutputError, RunError, UsageError
from ema_cli.formats.trainers.folders import TRAINER_STATE
from ema_cli.integrations.arguments import EMAArguments
from ema_cli.integrations.gathering import gather
from ema_cli.integrations.model_folder import copy_side_files, save_model
from ema_cli.law.time import Time, Unit
from ema_cli.online.clocks import Count
from ema_cli.online.ema import EMA
from ema_cli.online.sharded import is_sharded
from ema_cli.online.store import Offload
from ema_cli.online.tracks import Numbers, Times
from ema_cli.storage.staging.local import Staging

FOLDER = "ema"  # in checkpoint-N: for from_pretrained; next to the checkpoints: for EMA.store
STATE = "ema_state.pt"  # in checkpoint-N, next to the Trainer's own state
_KEYWORDS = {Unit.BATCH: "batch", Unit.EPOCH: "epoch", Unit.TOKEN: "token"}


class EMACallback(TrainerCallback):
    """Averages of the model that a Trainer trains, updated after each optimizer step.

        trainer = Trainer(model, arguments, callbacks=[EMACallback(half_life="50ba")], ...)
        trainer.train()
        AutoModel.from_pretrained("out/checkpoint-1000/ema")

    Each save writes the average into `checkpoint-N/ema`, as `save_pretrained` would, and the state for resuming into
    `checkpoint-N/ema_state.pt`; `train(resume_from_checkpoint=...)` continues with equal bits. Of several averages the
    first is written there and evaluated; all of them are stored in `ema/` of the output folder, which
    `save_total_limit` does not clear, for `ema-cli average --from stored`.

    `ema` is the EMA of the current training, or of the last one.

    Args:
        half_life, smoothing, ema_start, update_interval, train_with_ema_weights, sigma_rel, offload: as for `EMA`.
            Times in tokens need `TrainingArguments(include_num_input_tokens_seen=...)`; the Trainer counts no samples.
        store: store all averages at each save. Default: if there are several.
        change_half_life: allow resuming a training with another half-life, interval or start.

    Raises:
        UsageError: for values or combinations that make no sense.
    """

    def __init__(
        self,
        half_life: Times | None = None,
        smoothing: Numbers | None = None,
        ema_start: str | Time = "0ba",
        update_interval: str | Time | None = None,
        train_with_ema_weights: bool = False,
        *,
        sigma_rel: Numbers | None = None,
        offload: Offload = None,
        store: bool | None = None,
        change_half_life: bool = False,
    ) -> None:
        self.arguments = EMAArguments(
            half_life=half_life,
            smoothing=smoothing,
            ema_start=ema_start,
            update_interval=update_interval,
            train_with_ema_weights=train_with_ema_weights,
            sigma_rel=sigma_rel,
            offload=offload,
            keep_first=store,
        )
        if Unit.SAMPLE in self.arguments.units:
            raise UsageError(
                "the Trainer counts no samples", hint="give the time in ba, ep or tok, as half_life='50ba'"
            )
        self._stores = self.arguments.several if store is None else store
        self._change_half_life = change_half_life
        self._is_applied = False
        self._adapters: set[str] = set()
        self.ema: EMA | None = None
        self.evaluates = False  # whether the Trainer evaluates the average, and so chooses its best model by it

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember the adapters of a PEFT model."""
        self._adapters = set(getattr(kwargs.get("model"), "peft_config", ()))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin the averages; continue those of a resumed training."""
        model = kwargs["model"]
        if FOLDER in set(getattr(model, "peft_config", ())) - self._adapters:
            # On resuming, the Trainer mistakes the folder of averages for another adapter and loads it.
            model.delete_adapter(FOLDER)
        if Unit.TOKEN in self.arguments.units and args.include_num_input_tokens_seen == "no":
            raise UsageError(
                "the Trainer does not count tokens", hint="TrainingArguments(include_num_input_tokens_seen='all')"
            )
        self.ema = self.arguments.make(model)
        if state.global_step:
            self._resume(self.ema, args, state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Update the averages.

        The Trainer calls this once for each optimizer step, however many batches it accumulates, before it evaluates
        or saves; and unlike at `on_optimizer_step`, its counters include the step.
        """
        assert self.ema is not None
        clocks = _clocks(self.ema, args, state)
        self.ema.update(**{_KEYWORDS[unit]: count for unit, count in clocks.items()})

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the average and the state for resuming into the checkpoint that the Trainer has just written."""
        assert self.ema is not None
        folder = _checkpoint(args, state)
        if args.should_save and not folder.is_dir():
            raise OutputError(
                "is not where the Trainer saved", subject=folder, hint="search hyperparameters with save_strategy='no'"
            )
        if self.ema.started:
            self._export(self.ema, folder, kwargs.get("processing_class"), writes=args.should_save)
            if self._stores and not self.ema.averages.mixed:
                self.ema.store(Path(args.output_dir, FOLDER))
        # The state also serves to load a best model.
        if not args.save_only_model or args.load_best_model_at_end:
            saved = gather(self.ema.state_dict(), keep=args.should_save)
            if args.should_save:
                with Staging(folder / STATE) as staging:
                    torch.save(saved, staging.folder / STATE)
                    staging.publish_file(STATE, force=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Load the average of the best checkpoint into the model, if the Trainer chose the best one by averages."""
        if not (self.evaluates and args.load_best_model_at_end):
            return
        assert self.ema is not None
        best = state.best_model_checkpoint
        if args.world_size > 1:
            # From the main process, which has written that checkpoint by then.
            best_path = [best]
            distributed.broadcast_object_list(best_path)
            best = best_path[0]
        if best is None:
            return
        path = Path(best, STATE)
        if not path.is_file():
            # There was no average yet: the model itself was evaluated, and the Trainer has loaded it.
            self.ema = None
            return
        self._load(self.ema, path)
        if self.ema.started:
            self.ema.get_ema_model(average=self.ema.names[0])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Hold the first average in the model while the block runs, if it has begun. May be nested."""
        if self.ema is None or not self.ema.started or self._is_applied:
            yield
            return
        self._is_applied = True
        try:
            with self.ema.applied(self.ema.names[0]):
                yield
        finally:
            self._is_applied = False

    def _resume(self, ema: EMA, args: Any, state: Any) -> None:
        """Load the averages from the folder that the Trainer resumed from."""
        usual = _checkpoint(args, state)
        places = [Path(place) for place in (args.resume_from_checkpoint, usual) if place]
        folder = next((place for place in places if _is_of(place, state)), None)
        if folder is not None and (folder / STATE).is_file():
            return self._load(ema, folder / STATE)
        if not ema.averages.clocks.advanced(_clocks(ema, args, state)).reached(ema.averages.tracks.start):
            return None  # nothing is lost
        if folder is None:
            raise RunError(
                "is not what the Trainer resumed from, and it does not tell its callbacks what is",
                subject=usual,
                hint="say it in its arguments, too: TrainingArguments(resume_from_checkpoint=...)",
            )
        raise RunError("has no averages to go on with", subject=folder, hint="begin them later, as ema_start='5000ba'")

    def _load(self, ema: EMA, path: Path) -> None:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        ema.load_state_dict(saved, change_half_life=self._change_half_life)

    def _export(self, ema: EMA, folder: Path, processing_class: Any, *, writes: bool) -> None:
        """Write the first average as a folder for `from_pretrained`. Every process of a sharded model must call it.

        Args:
            ema: the averages.
            folder: of the checkpoint.
            processing_class: the tokenizer or processor to save with it, None for no such thing.
            writes: whether this process writes.
        """
        sharded = any(map(is_sharded, ema.model.parameters()))
        if not (writes or sharded):
            return
        with self.applied():
            tensors = gather(ema.model.state_dict(), keep=writes) if sharded else None
            if not writes:
                return
            with Staging(folder / FOLDER) as staging:
                written = staging.folder / FOLDER
                save_model(ema.model, tensors, written)
                if processing_class is not None:
                    processing_class.save_pretrained(written)
                copy_side_files(folder, written)
                staging.publish_folder(FOLDER, force=True)


class EMATrainerMixin:
    """Evaluate and predict on the average of the trainer's EMACallback; on the model itself until the average begins.

        class AveragingTrainer(EMATrainerMixin, Trainer):
            pass

    The best checkpoint is then the one whose average is best, and `load_best_model_at_end` loads that average.
    """

    callback_handler: Any

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, as the Trainer does."""
        self._averages.evaluates = True
        return super().train(*args, **kwargs)  # type: ignore[misc]

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate the average."""
        with self._averages.applied():
            return super().evaluate(*args, **kwargs)  # type: ignore[misc]

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Predict with the average."""
        with self._averages.applied():
            return super().predict(*args, **kwargs)  # type: ignore[misc]

    @property
    def _averages(self) -> EMACallback:
        callbacks = [callback for callback in self.callback_handler.callbacks if isinstance(callback, EMACallback)]
        if len(callbacks) != 1:
            raise UsageError(
                f"has {len(callbacks)} EMACallbacks, but evaluates the average of one",
                subject=type(self).__name__,
                hint="callbacks=[EMACallback(half_life='50ba')]; of several half-lives the first is evaluated",
            )
        return callbacks[0]


def _checkpoint(args: Any, state: Any) -> Path:
    """Return the Trainer's usual checkpoint folder for its present step: to save into, or to resume from."""
    return Path(args.output_dir, f"checkpoint-{state.global_step}")


def _is_of(folder: Path, state: Any) -> bool:
    """Return whether a state was saved in a folder: its step and its log agree, as several runs have equal steps."""
    path = folder / TRAINER_STATE
    if not path.is_file():
        return False
    saved = TrainerState.load_from_json(str(path))
    same: bool = saved.global_step == state.global_step and repr(saved.log_history) == repr(state.log_history)
    return same


def _clocks(ema: EMA, args: Any, state: Any) -> dict[Unit, Count]:
    """Return the Trainer's clocks by unit."""
    epoch = Fraction(repr(float(state.epoch)))
    # With ignore_data_skip, a resumed training repeats a part of its epoch: the clock stands still meanwhile.
    clocks: dict[Unit, Count] = {
        Unit.BATCH: state.global_step,
        Unit.EPOCH: max(epoch, ema.averages.clocks.passed.get(Unit.EPOCH, epoch)),
    }
    if args.include_num_input_tokens_seen != "no":
        clocks[Unit.TOKEN] = state.num_input_tokens_seen
    return clocks
