"""Averages in a training with Lightning's Trainer. Imports lightning; nothing else in ema_cli imports it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, Strategy
from torch import Tensor

from ema_cli._version import __version__
from ema_cli.errors import RunError, UsageError
from ema_cli.formats.trainers.averages import OWN_MARK
from ema_cli.integrations.arguments import EMAArguments
from ema_cli.integrations.gathering import gather
from ema_cli.law.time import Time, Unit
from ema_cli.online.ema import EMA
from ema_cli.online.state import StateDict
from ema_cli.online.store import Offload
from ema_cli.online.tracked import unwrap
from ema_cli.online.tracks import Numbers, Times

FOLDER = "ema"  # next to the checkpoints: the folder for EMA.store


class EMACallback(Callback):
    """Averages of the module that a Trainer trains, updated after each optimizer step.

        trainer = Trainer(callbacks=[EMACallback(half_life="50ba"), ModelCheckpoint(monitor="val_loss")], ...)
        trainer.fit(module)

    Validation, test and prediction run on the average. A checkpoint's `state_dict` holds the training weights, and the
    callback's own state the averages; `fit(ckpt_path=...)` continues with equal bits. With `save_weights_only=True` the
    `state_dict` holds the average, since a monitored metric belongs to it, and the key `ema_cli` says so. Of several
    averages the first is evaluated and saved there; all of them resume.

    `ema` is the EMA of the current training, or of the last one.

    Args:
        half_life, smoothing, ema_start, update_interval, train_with_ema_weights, sigma_rel, offload: as for `EMA`, in
            batches (optimizer steps, as `trainer.global_step`) or in epochs; Lightning counts neither samples nor
            tokens.
        store: a folder in which each checkpoint stores all averages, for `ema-cli average --from stored`. Default: if
            there are several averages, `ema` in the folder of the checkpoints.
        end_with_ema_weights: whether the module holds the average after `fit`, and not the training weights.
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
        store: str | Path | None = None,
        end_with_ema_weights: bool = False,
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
            keep_first=None if store is None else True,
        )
        if not self.arguments.units <= {Unit.BATCH, Unit.EPOCH}:
            raise UsageError(
                "Lightning counts neither samples nor tokens", hint="give the time in ba or ep, as half_life='50ba'"
            )
        self._folder = None if store is None else Path(store)
        self._end_with_ema_weights = end_with_ema_weights
        self._change_half_life = change_half_life
        self._saved: StateDict | None = None  # a state to load once the module is on its device
        self._is_foreign = False  # whether the module holds other weights than the averaged ones
        self._is_writer = True
        self._has_ended = False  # whether the module holds the average for good
        self._applied = ExitStack()
        self._is_applied = False
        self.ema: EMA | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set up the averages of the module; begin anew if it is another one than before.

        Raises:
            UsageError: with a strategy that flattens tensors, or saves them in a way of its own.
        """
        if isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy):
            raise UsageError(
                "keeps the module in a form that cannot be averaged as it trains",
                subject=type(trainer.strategy).__name__,
                hint="shard it with ModelParallelStrategy, or average its checkpoints: ema-cli average",
            )
        self._is_writer = trainer.is_global_zero
        if self.ema is None or self.ema.model is not unwrap(pl_module):
            self.ema = self.arguments.make(pl_module)
            self._saved = None
        # Lightning calls no callback when it saves or loads weights only, but all pass through these two methods.
        _hook(trainer.strategy, "save_checkpoint", partial(self._on_save, trainer))
        _hook(trainer.strategy, "load_model_state_dict", self._on_load)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continue the averages of a resumed training; otherwise begin anew."""
        self._hide()
        self._load()
        if trainer.global_step == 0 and self._live.started:
            self.ema = self.arguments.make(pl_module)
        elif trainer.global_step and not self._live.started and not self._is_to_come(trainer):
            raise RunError(
                "the checkpoint has no averages to go on with", hint="begin them later, as ema_start='5000ba'"
            )
        self._is_foreign = self._has_ended = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the averages. While gradients accumulate, the clock stands still until the optimizer steps."""
        # The last batch of an epoch completes it, as in the clocks that `ema-cli average` reads from checkpoints. It
        # must count here: validation and saving come before `on_train_epoch_end`.
        self._update(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Update averages that count in epochs, in case the last batch of this epoch was skipped."""
        self._update(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the average; the training weights are back at `on_validation_end`, before checkpoints are saved."""
        self._show()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the training weights back."""
        self._hide()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the average."""
        self._show()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the training weights back."""
        self._hide()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the average."""
        self._show()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the training weights back."""
        self._hide()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the training weights back, before ModelCheckpoint(save_on_exception=True) saves."""
        self._hide()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average into the module if `end_with_ema_weights`, now that everything is saved."""
        self._load()  # not loaded yet if nothing was left to train
        if self._end_with_ema_weights and self._live.started:
            self._live.get_ema_model(average=self._live.names[0])
            self._has_ended = True

    def state_dict(self) -> StateDict:
        """Return the state for resuming, with whole tensors: Lightning saves the first process's state alone."""
        self._load()
        if self.ema is None or not self.ema.started:
            return {}
        return gather(self.ema.state_dict(), keep=self._is_writer)

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Continue from a state, once the module is on its device."""
        self._saved = state_dict
        self._is_foreign = False

    @property
    def _live(self) -> EMA:
        if self.ema is None:
            raise UsageError("there is no module to average yet", hint="give the callback to a Trainer, and fit")
        return self.ema

    def _update(self, trainer: Trainer) -> None:
        done = trainer.current_epoch + int(trainer.is_last_batch)
        self._live.update(batch=trainer.global_step, epoch=done)

    def _show(self) -> None:
        """Put the average into the module until `_hide`, if it has begun."""
        self._load()
        if self._live.started and not self._is_foreign and not self._is_applied:
            self._applied.enter_context(self._live.applied(self._live.names[0]))
            self._is_applied = True

    def _hide(self) -> None:
        self._is_applied = False
        self._applied.close()

    def _is_to_come(self, trainer: Trainer) -> bool:
        """Return whether the average of a resumed training has still to begin."""
        done = {Unit.BATCH: trainer.global_step, Unit.EPOCH: trainer.current_epoch}
        tracks = self._live.averages.tracks
        first = 1 if tracks.interval is None else min(1, tracks.interval.value)
        return bool(tracks.start.value > done[tracks.start.unit] or first > done[tracks.unit])

    def _load(self) -> None:
        """Load a saved state, if there is one."""
        if self._saved is not None:
            saved, self._saved = self._saved, None
            self._live.load_state_dict(saved, change_half_life=self._change_half_life)

    def _on_save(self, trainer: Trainer, checkpoint: StateDict) -> None:
        """Make a checkpoint hold the training weights; a checkpoint of weights only, the average."""
        self._load()
        ema = self._live
        if not ema.started or self._is_foreign:
            return
        wanted = "callbacks" not in checkpoint
        if wanted != self._is_applied and not self._has_ended:
            with self._exchanged():
                # Copies: the memory of the module holds other weights again after the block.
                tensors = {
                    name: value.detach().clone() if isinstance(value, Tensor) else value
                    for name, value in trainer.strategy.lightning_module_state_dict().items()
                }
            # Tensors that the module's own hook left out stay out.
            checkpoint["state_dict"] = {
                name: tensors.get(name, value) for name, value in checkpoint["state_dict"].items()
            }
        if wanted or self._has_ended:
            average = {"average": ema.names[0], "clock": str(ema.clock)}
            checkpoint[OWN_MARK] = {"version": __version__, "weights": "averages", **average}
        folder = self._folder
        if folder is None and self.arguments.several:
            saver = trainer.checkpoint_callback
            folder = Path(getattr(saver, "dirpath", None) or trainer.default_root_dir, FOLDER)
        if folder is not None and not ema.averages.mixed:
            ema.store(folder)

    def _on_load(self, checkpoint: StateDict) -> None:
        """Mark the module as holding other weights than the averaged ones, until their state is loaded."""
        self._hide()
        self._saved = None
        self._is_foreign, self._has_ended = True, False

    @contextmanager
    def _exchanged(self) -> Iterator[None]:
        """Exchange the training weights and the average in the module while the block runs."""
        before, after = (self._hide, self._show) if self._is_applied else (self._show, self._hide)
        before()
        try:
            yield
        finally:
            after()


class _Hook:
    """A method of the trainer's strategy, preceded by a call of ours."""

    def __init__(self, ours: Callable[[StateDict], None], theirs: Callable[..., Any]) -> None:
        self.ours, self.theirs = ours, theirs

    def __call__(self, checkpoint: StateDict, *arguments: Any, **options: Any) -> Any:
        self.ours(checkpoint)
        return self.theirs(checkpoint, *arguments, **options)


def _hook(strategy: Strategy, name: str, ours: Callable[[StateDict], None]) -> None:
    theirs = getattr(strategy, name)
    setattr(strategy, name, _Hook(ours, theirs.theirs if isinstance(theirs, _Hook) else theirs))
