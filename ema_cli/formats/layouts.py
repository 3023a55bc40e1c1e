"""Where each trainer keeps weights and clocks in what it pickles, and which file names are never weights.

One table to read and to extend; facts checked against files that the trainers themselves wrote.

| trainer   | weights                                      | clocks                                          |
|-----------|----------------------------------------------|-------------------------------------------------|
| Composer  | state.model                                  | state.timestamp.Timestamp: all four units       |
| Lightning | state_dict                                   | global_step; epoch from 0, is_last_batch        |
| others    | model, state_dict, model_state_dict, module, | global_step, num_updates, iter_num, iteration,  |
|           | or the dict itself                           | step; epoch, from 0 or from 1                   |

Averages instead of, or beside, the raw weights:

| trainer       | the usual place holds                        | the other one                                |
|---------------|----------------------------------------------|----------------------------------------------|
| Composer      | averages if `ema_weights_active`, else raw   | state.algorithms EMA.ema_model               |
| Lightning     | averages if there is `current_model_state`   | raw, in `current_model_state`                |
| AveragedModel | averages, beside `n_averaged`                | none                                         |
| timm, others  | raw                                          | averages, in `state_dict_ema`, `model_ema`   |
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from ema_cli.checkpoint import Clock, Progress
from ema_cli.errors import CheckpointError, NoWeights, RunError
from ema_cli.formats.options import Choice
from ema_cli.formats.pickle_values import Inert, Refused, TensorRef
from ema_cli.units import Unit

WEIGHT_KEYS = ("model", "state_dict", "model_state_dict", "module")
BESIDE_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "model_avg", "ema")
BATCH_KEYS = ("global_step", "num_updates", "global_steps", "iter_num", "iteration", "step")
AVERAGED_AGAIN = "these are averages, which are averaged again"
AVERAGED_MODEL = "an AveragedModel: 'n_averaged' stands beside its weights"
CLOCK_KEYS = (*BATCH_KEYS, "epoch")

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")
NOT_WEIGHTS = (
    "optimizer*", "*optim_states*", "scheduler*", "rng_state*", "random_states*", "training_args*",
    "scaler.pt", "sampler*", "dataloader*", "trainer_state*",
)  # fmt: skip
UNFINISHED = ("tmp-*", "*.tmp", "*-tmp", "*.part", "*.partial", "*.incomplete")
COPIES = re.compile(r"(?:^|[-_.])(?:last|latest|best|final)(?:[-_.]|$)|model_best", re.IGNORECASE)
AVERAGES_FOLDER = re.compile(r"(?:^ema$|_ema$)", re.IGNORECASE)
SHARD = re.compile(r"-\d{5,}-of-\d{5,}\.(?:safetensors|bin)$")


Scalar = Callable[[str, TensorRef], int | None]  # reads a tensor of one element


@dataclass(slots=True)
class Found:
    """What a layout knows of one pickled object: its weights by name, its clocks, what it averaged already."""

    trainer: str | None
    tensors: Mapping[str, object]
    progress: Progress
    averaged: str | None = None
    notes: list[str] = field(default_factory=list)


def find_weights(root: Any, key: str | None, choice: Choice, scalar: Scalar) -> Found:
    """Return where the weights are in the unpickled `root`; `scalar` reads a one-element tensor.

    `key` (dots descend) overrides the known places. `choice` is the user's --weights.

    Raises:
        NoWeights: where no known place holds tensors.
        CheckpointError, RunError: where the place is ambiguous, or the weights asked for are not there.
    """
    if not isinstance(root, dict):
        if isinstance(root, Inert):
            raise CheckpointError(
                f"a whole pickled object of class {root.kind}, not a state dict",
                hint="save model.state_dict() and average those files",
            )
        raise NoWeights("holds no dict of tensors")
    found = _composer(root, choice) or _lightning(root, choice) or _plain(root, key, choice, scalar)
    if found is None:
        raise NoWeights(f"no weights in a place we know; it holds {_listed(root)}", hint="say where: --key NAME")
    if key is not None:
        chosen = _at_key(root, key)
        if chosen is not found.tensors:
            # The clocks are the trainer's all the same; whether these are averages, only the user knows.
            found = Found(found.trainer, chosen, found.progress)
    _keep_tensors(found)
    return found


def name_clocks(name: str) -> Progress:
    """Return the clocks in a checkpoint's name; the innermost folder or file that has any decides."""
    for part in reversed(name.split("/")):
        clocks: dict[Unit, Clock] = {}
        for unit, pattern in _NAME_PATTERNS:
            matches = pattern.findall(part)
            if matches:
                clocks[unit] = Clock(Fraction(matches[-1]), "name")
        if clocks:
            from_zero = Unit.EPOCH in clocks and not _COMPOSER_NAME.search(part)
            return Progress(clocks, epoch_origin_unknown=from_zero)
    return Progress()


def is_weights_name(name: str) -> bool:
    """Return whether a file of this name may hold weights: known suffix, not optimizer state and the like."""
    return name.lower().endswith(WEIGHT_SUFFIXES) and not any(
        fnmatch.fnmatch(name.lower(), pattern) for pattern in NOT_WEIGHTS
    )


def is_unfinished_name(name: str) -> bool:
    """Return whether the name is one that writers use until they are done; dot files are theirs, too."""
    return name.startswith(".") or any(fnmatch.fnmatch(name.lower(), pattern) for pattern in UNFINISHED)


_COMPOSER_NAME = re.compile(r"ep\d+-ba\d+", re.IGNORECASE)
_WORD = r"(?:^|[^a-z])"  # "step" in "step-100" and "global_step100", not in "footstep-100"
_AFTER = r"(?![\d.]*[kmbt](?![a-z]))"  # not the 4 of "tokens4B", nor of "step4.5k"
_COUNT = rf"[-_=]?(\d+){_AFTER}"
_DECIMAL = rf"[-_=]?(\d+(?:\.\d+)?){_AFTER}"
_NAME_PATTERNS = tuple(
    (unit, re.compile(pattern, re.IGNORECASE))
    for unit, pattern in (
        (Unit.EPOCH, rf"{_WORD}ep(?:och)?{_DECIMAL}"),
        (Unit.BATCH, rf"{_WORD}(?:ba(?:tch)?|steps?|iter(?:ation)?s?){_COUNT}"),
        (Unit.BATCH, r"^checkpoint-(\d+)$"),  # a folder of the Hugging Face Trainer
        (Unit.SAMPLE, rf"{_WORD}(?:sp|samples?){_COUNT}"),
        (Unit.TOKEN, rf"{_WORD}(?:tok|tokens?){_COUNT}"),
    )
)


def _composer(root: dict[Any, Any], choice: Choice) -> Found | None:
    state = root.get("state")
    model = state.get("model") if isinstance(state, dict) else None
    if not isinstance(state, dict) or not isinstance(model, dict):
        return None
    found = Found("Composer", model, _composer_progress(state.get("timestamp")))
    ema = next((part for name, part in _pairs(state.get("algorithms")) if name == "EMA"), None)
    store = ema.get("ema_model") if isinstance(ema, dict) else None
    if not isinstance(ema, dict) or not isinstance(store, dict):
        if choice == "ema":
            raise _no_averages()
        return found
    # With its EMA on, Composer swaps: averages in the model, and the raw weights in the EMA's store.
    other = dict(model)
    for part in ("named_parameters_dict", "named_buffers_dict"):
        values = store.get(part)
        other.update(values if isinstance(values, dict) else {})
    active = ema.get("ema_weights_active") is True
    raw, averages = (other, model) if active else (model, other)
    if active and choice is None:
        found.averaged = "Composer's EMA was on: 'state.model' holds averages"
    _choose(found, raw, averages, choice, beside="state.algorithms")
    return found


def _composer_progress(timestamp: Any) -> Progress:
    values = timestamp.get("Timestamp") if isinstance(timestamp, dict) else None
    if not isinstance(values, dict):
        return Progress()
    clocks: dict[Unit, Clock] = {}
    for name, unit in (
        ("epoch", Unit.EPOCH),
        ("batch", Unit.BATCH),
        ("sample", Unit.SAMPLE),
        ("token", Unit.TOKEN),
    ):
        count = _count(values.get(name))
        # Composer leaves samples and tokens at 0 where the loader does not count them.
        if count is not None and (count > 0 or unit in (Unit.EPOCH, Unit.BATCH)):
            clocks[unit] = Clock(count, "file")
    in_epoch = _count(values.get("batch_in_epoch"))
    return Progress(clocks, batch_in_epoch=None if in_epoch is None else int(in_epoch))


def _lightning(root: dict[Any, Any], choice: Choice) -> Found | None:
    usual = root.get("state_dict")
    if "pytorch-lightning_version" not in root or not isinstance(usual, dict):
        return None
    clocks: dict[Unit, Clock] = {}
    step, epoch = _count(root.get("global_step")), _count(root.get("epoch"))
    if step is not None:
        clocks[Unit.BATCH] = Clock(step, "file")
    if epoch is not None:
        # The epoch is counted from 0, and complete when its last batch is done. A file without loops was
        # written at the end of one.
        batches = _dig(root, "loops", "fit_loop", "epoch_loop.batch_progress", "is_last_batch")
        clocks[Unit.EPOCH] = Clock(epoch + (0 if batches is False else 1), "file")
    found = Found("Lightning", usual, Progress(clocks))
    raw = root.get("current_model_state")
    if isinstance(raw, dict):
        if choice is None:
            found.averaged = "Lightning's weight averaging was on: 'state_dict' holds averages"
        _choose(found, raw, usual, choice, beside=None)
    elif choice == "ema":
        raise _no_averages()
    return found


def _plain(root: dict[Any, Any], key: str | None, choice: Choice, scalar: Scalar) -> Found | None:
    progress = _plain_progress(root, scalar)
    if key is not None:
        return Found(None, _at_key(root, key), progress)
    places = [name for name in WEIGHT_KEYS if _has_tensors(root.get(name))]
    if len(places) > 1:
        raise CheckpointError(
            f"holds weights under '{places[0]}' and under '{places[1]}'", hint=f"say which: --key {places[0]}"
        )
    usual = root[places[0]] if places else root
    if not _has_tensors(usual):
        wrapped = next((root[name] for name in WEIGHT_KEYS if isinstance(root.get(name), Inert)), None)
        if wrapped is not None:
            raise CheckpointError(
                f"holds a pickled object of class {wrapped.kind} where weights are usual",
                hint="save model.state_dict() and average those files",
            )
        return None
    found = Found(None, usual, progress)
    beside = next((name for name in BESIDE_KEYS if places and _has_tensors(root.get(name))), None)
    if beside is not None:
        _choose(found, usual, root[beside], choice, beside=beside)
    elif "n_averaged" in usual:
        if choice == "raw":
            raise RunError("an AveragedModel, which holds no raw weights", hint="leave out --weights raw")
        if choice == "ema":
            found.notes.append(AVERAGED_AGAIN)
        else:
            found.averaged = AVERAGED_MODEL
    elif choice == "ema":
        raise _no_averages()
    return found


def _plain_progress(root: dict[Any, Any], scalar: Scalar) -> Progress:
    def read(name: str) -> Fraction | None:
        value = root.get(name)
        return _count(scalar(name, value) if isinstance(value, TensorRef) else value)

    clocks: dict[Unit, Clock] = {}
    for name in BATCH_KEYS:
        count = read(name)
        if count is not None and Unit.BATCH not in clocks:
            clocks[Unit.BATCH] = Clock(count, "file")
    epoch = read("epoch")
    if epoch is not None:
        clocks[Unit.EPOCH] = Clock(epoch, "file")
    return Progress(clocks, epoch_origin_unknown=epoch is not None and epoch.denominator == 1)


def _choose(found: Found, raw: dict[Any, Any], averages: dict[Any, Any], choice: Choice, beside: str | None) -> None:
    """Take the raw weights, or the averages where the user asked for them; say so where there is a choice."""
    if choice == "ema":
        found.tensors = averages
        found.notes.append(AVERAGED_AGAIN)
    elif found.averaged is None:
        moved = found.tensors is not raw
        found.tensors = raw
        if moved:
            found.notes.append("raw weights taken from beside the averages")
        elif choice is None:
            found.notes.append(f"raw weights taken; averages lie beside them, in '{beside}' (--weights ema)")


def _no_averages() -> RunError:
    return RunError("holds no averages", hint="leave out --weights ema")


def _keep_tensors(found: Found) -> None:
    """Drop plain values that stand between the tensors (a step in a bare state dict), and say so."""
    plain = [name for name, value in found.tensors.items() if value is None or isinstance(value, _PLAIN)]
    kept = {name: value for name, value in found.tensors.items() if name not in set(plain)}
    if not kept:
        raise NoWeights("holds no tensors where its weights should be")
    for name in kept:
        _check_name(name)
    dropped = [name for name in plain if name not in CLOCK_KEYS]
    if dropped:
        found.notes.append(f"not tensors, left out: {_listed(dropped)}")
    found.tensors = kept


def _check_name(name: object) -> None:
    """Raise a CheckpointError for a key that cannot be a tensor's name in the output."""
    if not isinstance(name, str):
        raise CheckpointError(f"a tensor has a key of type {type(name).__name__}, which is not a name")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise CheckpointError(f"the tensor name '{name[:60]}' is not valid text") from None
    if name == "__metadata__":
        raise CheckpointError("a tensor is named '__metadata__', which safetensors keeps for itself")


_PLAIN = (str, int, float, bool, bytes, complex)


def _at_key(root: dict[Any, Any], key: str) -> dict[Any, Any]:
    value: Any = root
    rest = key
    while rest:
        if not isinstance(value, dict):
            break
        if rest in value:
            value, rest = value[rest], ""
        else:
            head, _, rest = rest.partition(".")
            value = value.get(head)
    if not _has_tensors(value):
        raise CheckpointError(f"has no tensors under --key '{key}'", hint=f"at the top it holds {_listed(root)}")
    found: dict[Any, Any] = value
    return found


def _listed(names: Iterable[Any]) -> str:
    """Return the first few names for a message; a key may be anything, a number of thousands of digits too."""
    texts = [name for name in names if isinstance(name, str)]
    return ", ".join(f"'{name[:40]}'" for name in texts[:8]) or "no names"


def _has_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(item, TensorRef | Refused) for item in value.values())


def _count(value: Any) -> Fraction | None:
    """Return a counter as an exact number, None for anything that is not one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if value < 0 or value != value or value > 1 << 63:
        return None
    # repr: 0.3 is meant as 3/10, not as the nearest binary number.
    return Fraction(repr(value))


def _dig(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _pairs(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the (name, state) pairs of Composer's list of algorithms."""
    for item in value if isinstance(value, list) else ():
        if isinstance(item, list | tuple) and len(item) == 2:
            yield item[0], item[1]
