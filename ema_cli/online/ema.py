"""Average a model while it trains, by the law that `ema-cli average` applies to checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

from ema_cli.errors import UsageError
from ema_cli.kinds import check_flags, check_path_kinds
from ema_cli.law.power import Power
from ema_cli.law.time import Time, Unit
from ema_cli.online.averages import Averages
from ema_cli.online.clocks import Count
from ema_cli.online.places import Place, put_back, write_back
from ema_cli.online.saving import save_average, store_averages
from ema_cli.online.sharded import reshard
from ema_cli.online.state import StateDict, put_state, take_state
from ema_cli.online.store import Offload, no_gradients
from ema_cli.online.tracked import unwrap
from ema_cli.online.tracks import Numbers, Times, parse_tracks
from ema_cli.text import plural


class EMA:
    """Moving averages of a model's parameters and buffers, updated as it trains.

        ema = EMA(model, half_life="50ba", update_interval="1ba")
        for batch in loader:
            ...
            optimizer.step()
            ema.update()
        with ema.applied():
            evaluate(model)
        ema.save("ema.safetensors")

    The law is Composer's: at each update event, average = smoothing * average + (1 - smoothing) * model, with
    smoothing = 2 ** -(elapsed / half_life). The average begins as a copy of the model at the first update that is at
    or after `ema_start`.

    Args:
        model: the model that trains, bare or in DDP, FSDP2 (`fully_shard`) or torch.compile.
        half_life: the training time after which a state of the model counts half: "50ba", "2ep", or a share of the
            training since `ema_start`, "5%ba", as torchtitan has it. A sequence makes
            several averages at once. "0ba" gives the newest state, "infba" the first. Default: "1000ba". Above some
            500,000 updates float32 rounds the steps away: then a warning asks for a longer `update_interval`.
        smoothing: instead, the share of the old average that each update keeps, in [0, 1]; also called decay.
        ema_start: the clock at which the average begins.
        update_interval: the training time between two updates, or "every". Default: 1 in the unit of the half-life.
        train_with_ema_weights: whether the averages become the model's weights at each update. Experimental.
        profile, sigma_rel: instead, "power" for the power-function profile of Karras et al. 2024, and its relative
            width, in (0, 0.2886]; the width alone is enough.
        offload: "cpu" keeps the averages in the host's memory.
        keep_first: whether to keep a copy of the model from the beginning of the average, in the host's memory and in
            the model's dtypes, until `store` has written it: other half-lives are made from it afterwards. Default: if
            there are several averages.

    Trained parameters and all buffers are averaged, in at least float32 whatever the model's dtype; counters and other
    integers are copied at each event; frozen parameters are not stored. Not safe to use from several threads.

    Raises:
        UsageError: for values or combinations that make no sense.
    """

    def __init__(
        self,
        model: nn.Module,
        half_life: Times | None = None,
        smoothing: Numbers | None = None,
        ema_start: str | Time = "0ba",
        update_interval: str | Time | None = None,
        train_with_ema_weights: bool = False,
        *,
        profile: str | None = None,
        sigma_rel: Numbers | None = None,
        offload: Offload = None,
        keep_first: bool | None = None,
    ) -> None:
        if profile is not None and (profile != Power.profile or sigma_rel is None):
            raise UsageError(
                f"profile: {profile!r} is none that is kept as a model trains, or has no width",
                hint='profile="power", sigma_rel=(0.05, 0.10)',
            )
        check_flags(train_with_ema_weights=train_with_ema_weights)
        if keep_first is not None:
            check_flags(keep_first=keep_first)
        tracks = parse_tracks(half_life, smoothing, ema_start, update_interval, sigma_rel)
        if train_with_ema_weights and len(tracks.laws) > 1:
            raise UsageError("train_with_ema_weights: there are several averages to train with", hint="ask for one")
        if offload not in (None, "cpu"):
            raise UsageError(f"offload: {offload!r} is neither None nor 'cpu'")
        keeps_first = len(tracks.laws) > 1 if keep_first is None else keep_first
        self.averages = Averages(unwrap(model), tracks, offload, keeps_first)
        self.train_with_ema_weights = train_with_ema_weights

    def __repr__(self) -> str:
        """Return the averages in one line: their names, and how far they are."""
        done = plural(self.updates, "update") if self.started else "not begun"
        clock = f", at {self.clock}" if self.clock else ""
        return f"<EMA {', '.join(self.names)}: {done}{clock}>"

    @property
    def model(self) -> nn.Module:
        """Return the bare model that is averaged."""
        return self.averages.model

    @property
    def names(self) -> list[str]:
        """Return the names of the averages: `25ba`, `smoothing-0.99`, `power-0.1`."""
        return self.averages.names

    @property
    def clock(self) -> Time | None:
        """Return the clock of the last update, None before the first copy."""
        return self.averages.clock

    @property
    def updates(self) -> int:
        """Return the number of updates since the first copy."""
        return self.averages.updates

    @property
    def started(self) -> bool:
        """Return whether the average has begun."""
        return self.averages.started

    @no_gradients()
    def update(
        self,
        *,
        batch: Count | None = None,
        epoch: Count | None = None,
        sample: Count | None = None,
        token: Count | None = None,
    ) -> bool:
        """Count one more batch, after its optimizer step; return whether this was an update event.

        A caller that keeps the clocks gives the training time since the beginning instead. Clocks that are not given
        stay as they were.

        Args:
            batch: the optimizer steps.
            epoch: the completed epochs.
            sample: the samples.
            token: the tokens.

        Raises:
            UsageError: for a clock that goes back, for a missing clock in the unit of the average, or inside `applied`.
            RunError: if the model has other tensors than when the average began.
        """
        if self.averages.training is not None:
            raise UsageError("update: the averages are applied", hint="leave the `with ema.applied()` block first")
        passed = {Unit.BATCH: batch, Unit.EPOCH: epoch, Unit.SAMPLE: sample, Unit.TOKEN: token}
        is_event = self.averages.advance(passed)
        if is_event and self.train_with_ema_weights:
            self.averages.store().write_into_model(0)
        return is_event

    @contextmanager
    def applied(self, average: str | None = None) -> Iterator[nn.Module]:
        """Hold an average in the model while the block runs, and always restore the training weights afterwards.

        `average` names one of several. This takes the memory of the model once more, on the averages' device.

        Raises:
            UsageError: for a name that is unknown, inside another `applied`, and before the first copy.
            RunError: if the model has other tensors than when the average began; `save`, `store`, `state_dict` and
                `load_state_dict` raise it too.
        """
        number = self.averages.number(average)
        if self.averages.training is not None:
            raise UsageError("applied: the averages are applied already", hint="leave that `with` block first")
        with no_gradients():
            store = self.averages.store()
            reshard(self.model)
            live, places = store.live(), store.tracked.places
            kept = [store.like(tensor).copy_(tensor) for tensor in live]
        try:
            self.averages.training = kept
            with no_gradients():
                store.write_into_model(number)
            yield self.model
        finally:
            try:
                self._restore(places, live, kept)
            except BaseException:  # such as a KeyboardInterrupt in the middle: repeating it does no harm
                self._restore(places, live, kept)
                raise
            finally:
                self.averages.training = None

    @no_gradients()
    def get_ema_model(self, model: nn.Module | None = None, average: str | None = None) -> nn.Module:
        """Replace the parameters and buffers of `model` (default: the one that trains) by the averages; return it.

        Raises:
            UsageError: inside `applied`, for an unknown name, and before the first copy.
            RunError: if `model` has other tensors.
        """
        if self.averages.training is not None and (model is None or unwrap(model) is self.model):
            raise UsageError("get_ema_model: the averages are applied already")
        number = self.averages.number(average)
        store = self.averages.settled_store()
        return store.fill(model, (*store.averages[number], *store.copies))

    @no_gradients()
    def get_training_model(self, model: nn.Module | None = None) -> nn.Module:
        """Replace the parameters and buffers of `model` by the training weights; return it. Only inside `applied`.

        Raises:
            UsageError: outside of `applied`, as the model holds the training weights anyway.
            RunError: if `model` has other tensors.
        """
        if self.averages.training is None:
            raise UsageError("get_training_model: no averages are applied; the model holds the training weights")
        return self.averages.store().fill(model, self.averages.training)

    @no_gradients()
    def save(
        self, path: str | Path, average: str | None = None, *, force: bool = False, allow_non_finite: bool = False
    ) -> None:
        """Write an average as one safetensors file, with the model's names, shapes and dtypes, as `ema-cli average`.

        Every process of a distributed training must call it; the first writes. The file is complete or does not exist.

        Args:
            path: of the file, with the suffix `.safetensors`.
            average: the name of one of several averages.
            force: replace an existing file.
            allow_non_finite: write NaN and infinities.

        Raises:
            OutputError: if `path` exists, unless `force`, or cannot be written.
            NonFiniteError: for a NaN or infinity in it, unless `allow_non_finite`.
            UsageError: before the first copy, and for an unknown name.
        """
        check_path_kinds(path=path)
        check_flags(force=force, allow_non_finite=allow_non_finite)
        number = self.averages.number(average)
        save_average(self.averages, number, Path(path), force=force, allow_non_finite=allow_non_finite)

    @no_gradients()
    def store(self, folder: str | Path) -> Path:
        """Write all averages in full precision into a new folder inside `folder`, named by the clock; return its path.

        From stored averages, `ema-cli average --from stored` makes any half-life. The first copy is written once.
        What another training stored in `folder`, or this one after the state that it was resumed from, is renamed to
        `NAME.given-up`. Every process of a distributed training must call it; the first writes.

        Raises:
            OutputError: if they cannot be written, or something that `store` did not make has the name of their folder.
            UsageError: before the first copy.
        """
        check_path_kinds(folder=folder)
        return store_averages(self.averages, Path(folder))

    @no_gradients()
    def state_dict(self) -> StateDict:
        """Return the state that `load_state_dict` needs to continue with equal bits.

        Its tensors are not copies: save it before the training continues. Sharded tensors are DTensors, which
        `torch.distributed.checkpoint` saves and reshards. The state includes a first copy that is not stored yet; that
        library loads it only into the state of a run that has a first copy, so after the run's first update.
        """
        return take_state(self.averages)

    @no_gradients()
    def load_state_dict(self, state: StateDict, *, change_half_life: bool = False) -> None:
        """Continue from a state of `state_dict`: the run gives the same bits as one without a stop.

        Raises:
            RunError: if the model has other tensors, or the state is of another half-life, interval or start, unless
                `change_half_life` is true.
        """
        if self.averages.training is not None:
            raise UsageError("load_state_dict: the averages are applied")
        check_flags(change_half_life=change_half_life)
        put_state(self.averages, state, change_half_life=change_half_life)

    @no_gradients()
    def _restore(self, places: Sequence[Place], live: Sequence[Tensor], kept: Sequence[Tensor]) -> None:
        """Write `kept` into the tensors of the model, after putting these back wherever a block replaced them."""
        reshard(self.model)
        put_back(places)
        for tensor, before in zip(live, kept, strict=True):
            write_back(tensor, before)
