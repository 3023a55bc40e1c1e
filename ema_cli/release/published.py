"""Find published averages: the paths of their files, manifests and checksums. No numpy."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from ema_cli.dataclass import dataclass
from ema_cli.errors import CheckpointError, EmaError, UsageError, VerificationError, option
from ema_cli.formats.mark import FILE_SUFFIX, SIGNATURE_NAME, SIGNATURE_SUFFIX, SUMS_SUFFIX
from ema_cli.formats.trainers.names import WEIGHT_SUFFIXES
from ema_cli.manifest.manifest import read_manifest
from ema_cli.manifest.signature import signature_path
from ema_cli.manifest.sums import manifest_path, sums_path
from ema_cli.manifest.types import Manifest
from ema_cli.planning.named_file import check_named_file, nearer_advice
from ema_cli.runs.run import read_run
from ema_cli.storage.begun_parts import begun_inside, not_there_yet
from ema_cli.storage.location import claim_on, location, look_anew
from ema_cli.storage.named_paths import check_exists

# What git, the Hub and a signer keep in the folder of a release. It is named, and neither entered nor compared.
_NO_PART = (
    ".git", ".gitattributes", ".cache/huggingface", SIGNATURE_NAME,
    "SHA256SUMS.asc", "SHA256SUMS.sig", "SHA256SUMS.sigstore.json",
)  # fmt: skip
_NAME_ONE = "name an average: a file or folder that ema-cli average wrote"
_WAIT = "wait for the end of that run; if it died, average again"


@dataclass(frozen=True, slots=True)
class Published:
    """One average: a folder, or one file with its manifest and its checksums next to it."""

    path: Path
    is_folder: bool

    @property
    def manifest(self) -> Path:
        """Return the path of its manifest."""
        return manifest_path(self.path, is_folder=self.is_folder)

    @property
    def sums(self) -> Path:
        """Return the path of its checksums."""
        return sums_path(self.path, is_folder=self.is_folder)

    @property
    def signature(self) -> Path:
        """Return the path of its signature."""
        return signature_path(self.path, is_folder=self.is_folder)

    @property
    def folder(self) -> Path:
        """Return the folder of its files."""
        return self.path if self.is_folder else self.path.parent

    @property
    def unfinished(self) -> str:
        """Return what follows, in words, where its manifest or its file is missing: who may be writing it."""
        claim = claim_on(self.path)
        return f"; {claim} is the claim of a run that writes there, or died" if claim is not None else ""

    @property
    def vouched(self) -> bool:
        """Return whether a manifest or checksums exist."""
        return any(location(path).info(follow=False).exists for path in (self.manifest, self.sums))


def find_averages(paths: Iterable[Path], allow_extra: Sequence[str] = ()) -> list[Published]:
    """Return the averages at `paths`, each once: a file, a folder, or each of several in a folder.

    What else lies in a folder of several is returned, too: it is vouched for by nothing.

    Args:
        paths: what the user names.
        allow_extra: patterns of names that may lie in a folder of several, too.

    Raises:
        UsageError: for a path that does not exist.
        VerificationError: for one with raw checkpoints, and for one in a store where a run has begun to write.
    """
    averages: dict[Path, Published] = {}
    named = list(paths)
    look_anew(named)
    for path in named:
        at_path = _averages_at(path, allow_extra)
        if len(at_path) == 1 and not at_path[0].vouched and (other := describe_raw(path) or _describe_other(path)):
            raise VerificationError(other[0], subject=path, hint=other[1])
        for average in at_path:
            averages.setdefault(average.path, average)
    return list(averages.values())


def _averages_at(path: Path, allow_extra: Sequence[str]) -> list[Published]:
    if location(path).info().is_folder:
        whole = Published(path, is_folder=True)
        return [whole] if whole.vouched else _averages_inside(path, allow_extra) or [whole]
    for suffix in (FILE_SUFFIX, SUMS_SUFFIX, SIGNATURE_SUFFIX) if path.name != SIGNATURE_NAME else ():
        if path.name.endswith(suffix) and path.name != suffix:
            path = path.with_name(path.name.removesuffix(suffix))
    single = Published(path, is_folder=False)
    if not single.vouched:
        exists = location(path).info(follow=False).exists
        if not exists and (begun := not_there_yet(path)) is not None:
            raise VerificationError(begun[0], subject=path, hint=begun[1])
        if not exists and single.unfinished:
            raise VerificationError(f"is not there yet{single.unfinished}", subject=path, hint=_WAIT)
        check_exists(path, follow=False)
    # A file of a folder, its manifest or checksums too, stands for the folder.
    whole = Published(path.parent, is_folder=True)
    return [whole if whole.vouched and not single.vouched else single]


def _averages_inside(folder: Path, allow_extra: Sequence[str] = ()) -> list[Published]:
    """Return the averages in a folder, and what else lies there but what git, the Hub or a signer keeps.

    If none has a manifest or checksums, return nothing: then it is a folder of something else.
    """
    averages: dict[str, Published] = {}
    for entry in sorted(location(folder).entries(), key=lambda entry: entry.name):
        name = entry.name if entry.is_folder else entry.name.removesuffix(FILE_SUFFIX).removesuffix(SUMS_SUFFIX)
        averages[name] = Published(folder / name, entry.is_folder)
    vouched = [name for name, average in averages.items() if average.vouched]
    if not vouched:
        return []
    signatures = {averages[name].signature.name for name in vouched if not averages[name].is_folder}
    return [
        average
        for name, average in averages.items()
        if name in vouched or not (name in signatures or is_no_part(name) or is_allowed(name, allow_extra))
    ]


def describe_raw(path: Path) -> tuple[str, str] | None:
    """Return what lies at a path if it is no average but raw checkpoints, and what to do; None for all else.

    An average without a manifest has ema-cli's mark in it, and is not meant.
    """
    try:
        checkpoints = read_run([path]).checkpoints
    except EmaError:
        return None
    if any(checkpoint.mark is not None for checkpoint in checkpoints):
        return None
    what = "a raw checkpoint" if len(checkpoints) == 1 else f"a run of {len(checkpoints)} raw checkpoints"
    return f"is no average of ema-cli's, but {what}", _NAME_ONE


def _describe_other(path: Path) -> tuple[str, str] | None:
    """Return that a path holds no weights at all, and what to do; None where it may."""
    place = location(path)
    if place.info().is_folder:
        begun = begun_inside(path)
        if begun is not None:
            return f"holds no average: {begun[0]}", begun[1]
        return None if place.names() else ("is an empty folder", _NAME_ONE)
    return None if path.name.lower().endswith(WEIGHT_SUFFIXES) else ("is no average of ema-cli's", _NAME_ONE)


def average_at(path: Path) -> Path:
    """Return the average that a user means: what lies at a path, or what has its manifest, its sums or a file there.

    Raises:
        UsageError: if nothing exists there.
        VerificationError: for a place in a store where a run has begun to write.
    """
    check_exists(path)
    return path if location(path).info().is_folder else _averages_at(path, ())[0].path


def read_output(output: Path) -> Manifest:
    """Return the manifest of the average at `output`.

    Raises:
        UsageError: if nothing exists there, or the folder holds averages.
        CheckpointError: if it has no manifest, or one that cannot be read.
    """
    check_exists(output)
    info = location(output).info()
    path = manifest_path(output, is_folder=info.is_folder)
    if location(path).info().exists:
        return read_manifest(path)
    inside = [published for published in _averages_inside(output) if published.vouched] if info.is_folder else []
    if inside:
        fact = "holds several averages" if len(inside) > 1 else "is no average, and holds one"
        raise UsageError(
            fact, subject=output, hint=f"name {'one of them' if len(inside) > 1 else 'it'}: {inside[0].path}"
        )
    if (raw := describe_raw(output)) is not None:
        raise CheckpointError(raw[0], subject=output, hint=raw[1])
    raise CheckpointError(
        f"has no manifest, {path.name}",
        subject=output,
        hint=f"ema-cli average writes one beside the weights, unless {option('manifest', False)} is given",
    )


def read_named_manifest(path: Path) -> Manifest:
    """Return the manifest that a user names.

    Raises:
        UsageError: where no such file lies there, but a folder, an average, a checkpoint. The hint names the manifest
            of the average there.
        CheckpointError: where it cannot be read, or is no manifest.
    """
    try:
        check_named_file(path, option="recipe", hint=None)
        return read_manifest(path)
    except EmaError as error:
        hint = nearer_advice(error, path) or _hint_at_manifest(path)
        raise type(error)(error.fact, option=error.option, subject=error.subject, hint=hint) from error


def _hint_at_manifest(path: Path) -> str:
    """Return what to name as a manifest instead of a path: that of the average which it is, or belongs to."""
    try:
        manifests = [each.manifest for each in _averages_at(path, ()) if location(each.manifest).info().is_file]
    except EmaError:
        manifests = []
    if path in manifests:
        return "bring back the manifest as ema-cli wrote it"
    if manifests:
        of_which = "its manifest" if len(manifests) == 1 else "the manifest of one of its averages"
        return f"name {of_which}: {option('recipe', str(manifests[0]))}"
    return f"a manifest is what ema-cli average writes beside the weights, unless {option('manifest', False)} is given"


def is_no_part(name: str) -> bool:
    """Return whether a name in the folder of a release is of git, the Hub or a signer."""
    return name in _NO_PART


def is_allowed(name: str, patterns: Sequence[str]) -> bool:
    """Return whether a name, or that of a folder around it, matches one of the patterns."""
    path = PurePosixPath(name)
    names = [path.as_posix(), *(parent.as_posix() for parent in path.parents)][: len(path.parts)]
    return any(fnmatch.fnmatchcase(inner, pattern.rstrip("/")) for inner in names for pattern in patterns)
