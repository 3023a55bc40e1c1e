"""Facts in the name of a file or folder: its clocks, whether it may hold weights, whether it is finished.

First the tables, to be read as a page, then the functions that apply them.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

from ema_cli.checkpoint import Clock, Progress
from ema_cli.formats.trainers.folders import SHARD
from ema_cli.law.time import Unit
from ema_cli.storage.location import location
from ema_cli.text import lazy_pattern

AVERAGED_COUNT = "n_averaged"  # beside the weights in torch's AveragedModel
# BatchNorm's buffers, which each rank counts for itself, and which are not among `model.parameters()`.
BATCH_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
EXTRA_STATE = "_extra_state"  # the end of the name of a module's value that only its own code can read
IN_AVERAGES = "it is in a folder of averages, by its name"
NAME_SAYS_AVERAGES = "its name says averages"
WEIGHT_SUFFIXES = (
    ".safetensors",
    ".pt",
    ".pth",
    ".bin",
    ".ckpt",
    ".tar",
    ".tgz",
    ".npz",
    ".zip",
    ".nemo",
    ".pdparams",
    ".msgpack",
)
# Of models in formats that are not read.
FOREIGN_SUFFIXES = (".gguf", ".onnx", ".h5", ".hdf5", ".keras")
_COMPRESSED_SUFFIXES = (".zst", ".gz", ".lz4", ".bz2", ".xz", ".lzma", ".lzo")
_SUFFIXES = (*WEIGHT_SUFFIXES, *FOREIGN_SUFFIXES, *_COMPRESSED_SUFFIXES)
_NOT_WEIGHTS = (
    "optimizer*", "*optim_states*", "scheduler*", "rng_state*", "random_states*", "training_args*",
    "optim_*", "*_optimizer.pt", "criterion*", "train_end_criterion*", "brain.ckpt", "counter.ckpt",
    "scaler.pt", "sampler*", "dataloader*", "trainer_state*", "meta.pt", "metadata.pt", "common.pt",
    "bad-model*", "extra_state*", "data.pt",
)  # fmt: skip
_NOT_WEIGHTS_NAME = lazy_pattern("|".join(map(fnmatch.translate, _NOT_WEIGHTS)))
# In the folder of a checkpoint: transformers' state of an optimizer, Accelerate's, SpeechBrain's, other loops'.
OPTIMIZER_FILES = ("optimizer.pt", "optimizer.bin", "optimizer.ckpt", "optimizer.pth")
_UNFINISHED = ("tmp-*", "*.tmp", "*-tmp", "*.part", "*.partial", "*.incomplete", "*.orbax-checkpoint-tmp*")
_UNFINISHED_NAME = lazy_pattern("|".join(map(fnmatch.translate, _UNFINISHED)))
# One part of a model: fairseq's names of shards, Accelerate's of FSDP's local state.
PARTS = lazy_pattern(r"-rank-\d+\.pt$|-shard\d+\.pt$|_fsdp_rank\d+\.bin$|\.distcp$")
COPIES = lazy_pattern(r"(?:^|[-_.])(?:last|latest|best|final|train_end)(?:[-_.]|$)|model_best", re.IGNORECASE)
RECOVERY = lazy_pattern(r"^recovery-\d+-\d+\.")  # timm's, in the middle of an epoch
AVERAGES_FOLDER = lazy_pattern(r"(?:^|[-_])ema$|^step\d+-merged$", re.IGNORECASE)  # the latter OLMo-core's
# What averages are called inside an object: params_ema, ema_model, modelEMA, swa_state_dict, model_avg, ema2. Not the
# averages of gradients that optimizers call exp_avg.
AVERAGES_KEY = lazy_pattern(
    r"(?:^|(?<!exp)[._-])(?i:ema|swa|avg|averaged?|shadow|polyak)\d*(?:[._-]|$|(?=[A-Z]))"
    r"|(?<=[a-z0-9])(?:E[Mm][Aa]|S[Ww][Aa]|Av(?:g|eraged?))\d*(?=[A-Z._-]|$)"
)
_AVERAGES_WORDS = ("ema", "swa", "avg", "average", "shadow", "polyak")  # one of them is in whatever that matches
# What a model is called that follows the one that trains: its average, its copy at times, or one that stands still.
FOLLOWER_KEY = lazy_pattern(
    r"(?:^|[._-])(?i:teacher|target|slow|momentum)(?:[._-]|$|(?=[A-Z]))"
    r"|(?<=[a-z0-9])(?:Teacher|Target|Slow|Momentum)(?=[A-Z._-]|$)"
)
FROM_ITERATIONS = lazy_pattern(r"^iter_\d+\.pth$")  # what mmcv saves in the middle of an epoch, or without epochs
# Averages as espnet (valid.acc.ave_10best.pth), wenet (avg_10.pt), NeMo (...-EMA.ckpt) and others name them. Not a
# metric (val_ema_loss=0.1), and not our own outputs, which have a mark.
_OWN = r"-(?:\d[\d.e]*|inf)(?:ba|ep|sp|tok)"
AVERAGES_FILE = lazy_pattern(
    rf"(?:^|[-_.])(?:(?:ema|swa)(?![a-z]|[-_a-z]*=|{_OWN})"
    r"|(?:ave|avg|averaged?)(?:[-_]?(?:\d+(?:best)?|model|weights))?(?:\.till\d+epoch)?(?:\.[a-z]+)*$)",
    re.IGNORECASE,
)
_WORD = r"(?:^|[^a-z])"  # "step" in "step-100" and "global_step100", not in "footstep-100"
_SHORT = r"(?:^|[^a-z0-9]|ep\d{1,9})"  # "ba" in "ep1-ba50" and "ep1ba50", not in the random "x9ba12qq"
# What comes after a number that is one: not the 4 of "tokens4B", "step4.5k" and "step4,500", nor of "epoch_4th".
_AFTER = r"(?!\d|[\d.]*(?:[kmbt](?![a-z])|,\d|e\d|(?:st|nd|rd|th)(?![a-z])))"
_COUNT, _DECIMAL = r"(\d+)", r"(\d+(?:\.\d+)?)"
_NO_LETTER = r"(?![a-z])"
_COMPOSER_NAME = lazy_pattern(r"ep\d+-ba\d+", re.IGNORECASE)
# Each unit with words of which one is in whatever matches, what stands before its number, the number, and what may not
# come after it.
_NAME_CLOCKS = (
    (Unit.EPOCH, ("epoch",), rf"{_WORD}epoch", _DECIMAL, ""),
    (Unit.EPOCH, ("ep",), r"(?:^|[^a-z0-9])ep", _DECIMAL, r"(?!(?!ba\d)[a-z])"),
    (Unit.EPOCH, ("epoch.",), "^", _COUNT, r"(?=epoch\.)"),  # espnet
    (Unit.BATCH, ("batch", "step", "iter"), rf"{_WORD}(?:batch|steps?|iter(?:ation)?s?)", _COUNT, ""),
    (Unit.BATCH, ("ba",), rf"{_SHORT}ba", _COUNT, _NO_LETTER),
    (Unit.BATCH, ("checkpoint-",), r"^checkpoint-", _COUNT, "$"),  # a folder of the Hugging Face Trainer
    (Unit.BATCH, ("_adapters.",), "^", r"(\d{7,})", r"(?=_adapters\.safetensors$)"),  # mlx-lm
    (Unit.SAMPLE, ("sample",), rf"{_WORD}samples?", _COUNT, ""),
    (Unit.SAMPLE, ("sp",), rf"{_SHORT}sp", _COUNT, _NO_LETTER),
    (Unit.TOKEN, ("token",), rf"{_WORD}tokens?", _COUNT, ""),
    (Unit.TOKEN, ("tok",), rf"{_SHORT}tok", _COUNT, _NO_LETTER),
)
_NUMBER = lazy_pattern(r"(?:^|(?<=[-_. =]))[0-9]+(?:[.,][0-9]+)*(?=$|[-_. =])|[0-9]+$")  # not the 2 of wav2vec
_SEPARATORS = lazy_pattern(r"[-_. =]{2,}")
_CLOCKS = tuple(
    (unit, words, lazy_pattern(rf"{before}[-_=]?{number}{_AFTER}{after}", re.IGNORECASE))
    for unit, words, before, number, after in _NAME_CLOCKS
)
_WORDS = tuple(
    (unit, lazy_pattern(rf"{before}[-_=]?$", re.IGNORECASE))
    for unit, _, before, _, _ in _NAME_CLOCKS
    if not before.startswith("^")
)


def unit_before(text: str) -> Unit | None:
    """Return what a number after such a text counts, None where that is not said."""
    return next((unit for unit, word in _WORDS if word.search(text)), None)


def _clocks_for(text: str) -> Iterator[tuple[Unit, re.Pattern[str]]]:
    """Yield the patterns that may match: few do, and they take long to compile."""
    folded = text.casefold()
    return ((unit, pattern) for unit, words, pattern in _CLOCKS if any(word in folded for word in words))


@lru_cache(maxsize=1 << 14)  # a run's names are looked at more than once
def name_clocks(name: str) -> Progress:
    """Return the clocks in a checkpoint's name; the innermost folder or file that has any decides."""
    for part in reversed(name.split("/")):
        clocks: dict[Unit, Clock] = {}
        for unit, pattern in _clocks_for(part):
            matches = pattern.findall(part)
            if matches and Fraction(matches[-1]) < 1 << 63:  # as in files; a longer number is no counter
                clocks[unit] = Clock(Fraction(matches[-1]), "name")
        if clocks:
            from_zero = Unit.EPOCH in clocks and not _COMPOSER_NAME.search(part)
            return Progress(clocks, epoch_origin_unknown=from_zero)
    return Progress()


def component_name(name: str) -> str:
    """Return what the name of a file says of the model in it: `G` for G_1000.pth, G_step1000.pth and epoch_3-G.pth."""
    text = stem(name)
    for _, clock in _clocks_for(text):
        text = clock.sub("_", text)
    return _SEPARATORS.sub("_", _NUMBER.sub("", text)).strip("-_. =")


def averages_by_name(path: Path) -> str | None:
    """Return how the name of a file or folder, or of the folder around it, shows averages; None if none does."""
    path = path.absolute()
    if location(path).info().is_folder:
        in_folder = AVERAGES_FOLDER.search(path.name) or path.parent.name.lower() == "ema"
    else:
        in_folder = AVERAGES_FOLDER.search(path.parent.name) or path.parent.parent.name.lower() == "ema"
        if AVERAGES_FILE.search(path.name):
            return NAME_SAYS_AVERAGES
    return IN_AVERAGES if in_folder else None


def averages_file(names: Iterable[str]) -> str | None:
    """Return the file, or the index of files, in a checkpoint's folder that its name calls averages of the model.

    Where several do, it is the first one as safetensors.
    """
    whole = {name: name.removesuffix(".index.json") for name in names}
    called = [
        name for name, file in whole.items()
        if is_weights_name(file) and not SHARD.search(file) and AVERAGES_KEY.search(stem(file))
    ]  # fmt: skip
    return min(called, key=lambda name: (".safetensors" not in name, name), default=None)


def may_hold_averages(names: Iterable[object]) -> bool:
    """Return whether any name has a part that is called averages. Fast, as most models have none."""
    text = "\n.".join([name for name in names if isinstance(name, str)])
    folded = text.casefold()
    return any(word in folded for word in _AVERAGES_WORDS) and AVERAGES_KEY.search(text) is not None


def is_weights_name(name: str) -> bool:
    """Return whether a file of this name may hold weights: by its suffix, and not optimizer state or the like."""
    lower = name.lower()
    for suffix in _COMPRESSED_SUFFIXES:
        lower = lower.removesuffix(suffix)
    return lower.endswith(WEIGHT_SUFFIXES) and not _NOT_WEIGHTS_NAME.match(lower)


def stem(name: str) -> str:
    """Return a name without the suffixes of weights and of compression: `step-10` for step-10.pth.tar."""
    while True:
        lower = name.lower()
        if not lower.endswith(_SUFFIXES):
            return name
        suffix = next(suffix for suffix in _SUFFIXES if lower.endswith(suffix))
        if name == suffix:
            return name
        name = name[: -len(suffix)]


def is_unfinished_name(name: str) -> bool:
    """Return whether writers use such a name until they are done, as they use names that begin with a dot."""
    return name.startswith(".") or _UNFINISHED_NAME.match(name.lower()) is not None
