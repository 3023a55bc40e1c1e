"""Check an average against its manifest and its checksums: every file, every tensor, every number. Writes nothing.

Each statement that does not hold is a problem, and all problems are returned; only an unreadable file is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ema_cli._version import __version__
from ema_cli.dataclass import dataclass
from ema_cli.errors import at_terminal
from ema_cli.folding.sample import Sample
from ema_cli.formats.output_file import whole_name
from ema_cli.formats.trainers.names import WEIGHT_SUFFIXES
from ema_cli.manifest.signing import PublicKey
from ema_cli.release.checks import all_problems
from ema_cli.release.clocks import overruled_by
from ema_cli.release.published import Published
from ema_cli.release.signed import Signed, check_signature
from ema_cli.release.snapshot import Snapshot, take_snapshot
from ema_cli.system.progress import ProgressCallback, no_progress
from ema_cli.text import plural


@dataclass(frozen=True, slots=True)
class Against:
    """The extent and the result of a comparison with the checkpoints.

    Attributes:
        checkpoints: the number of checkpoints that were averaged again.
        tensors: the number of tensors that were compared.
        sample: the elements of each tensor that were compared; None for all of them.
        bytes_read: the bytes of checkpoints that were read.
        tensors_different, bytes_different: the number of tensors, and of bytes in all, that differ from the repeated
            average.
        overruled: the options of the recipe by which clocks that the checkpoints record were overruled.
    """

    checkpoints: int
    tensors: int
    sample: Sample | None
    bytes_read: int
    tensors_different: int
    bytes_different: int
    overruled: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verified:
    """A snapshot of an average, and what was found.

    Attributes:
        snapshot: the average as it was read.
        problems: a sentence for each thing that does not hold.
        against: the comparison with the checkpoints, if one was made.
        notes: what else to know of the comparison.
        own_words: what only the version of ema-cli that made the average could compare, in words.
        unknown: what nobody can compare any more, in words.
        signature: the signature, if it has one, and what is known of it.
    """

    snapshot: Snapshot
    problems: tuple[str, ...]
    against: Against | None = None
    notes: tuple[str, ...] = ()
    own_words: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    signature: Signed | None = None

    @property
    def published(self) -> Published:
        """Return the paths of the average."""
        return self.snapshot.published

    @property
    def not_compared(self) -> tuple[str, ...]:
        """Return what was not compared, in words.

        What the user allows to differ, what another version words, what was said of files that lay around the
        checkpoints, how a half-life was chosen, which only the evaluation can tell, and what `watch` has folded.
        """
        manifest = self.snapshot.manifest
        others = []
        if manifest is not None and "tune" in manifest:
            others.append("how the half-life was chosen (tune)")
        if manifest is not None and "watch" in manifest and self.against is None:
            others.append(f"{plural(len(manifest['inputs']), 'input')}, which watch folded as they came")
        return tuple(dict.fromkeys([*sorted(self.snapshot.edited), *self.own_words, *self.unknown, *others]))

    @property
    def overruled(self) -> tuple[str, ...]:
        """Return the options by which recorded clocks were overruled; without checkpoints, as the manifest says."""
        manifest = self.snapshot.manifest
        if self.against is not None or manifest is None:
            return self.against.overruled if self.against is not None else ()
        return overruled_by(
            manifest["recipe"], [clock["from"] for row in manifest["inputs"] for clock in row["clocks"].values()]
        )

    @property
    def files(self) -> int:
        """Return the number of files that were read."""
        return len(self.snapshot.files)

    @property
    def tensors(self) -> int:
        """Return the number of tensors that were checked; 0 without a manifest."""
        if self.snapshot.manifest is None:
            return 0
        opened = self.snapshot.opened.items()
        return len({whole_name(file, name) for file, checkpoint in opened for name in checkpoint.tensors.specs})

    @property
    def nbytes(self) -> int:
        """Return the total size of the files that were read, in bytes."""
        return sum(file.size for file in self.snapshot.files.values())


def demand_all(verified: Verified) -> Verified:
    """Add a problem for what was not compared, a signature too, and for recorded clocks that were overruled.

    What the user allows is none.
    """
    facts = []
    if verified.own_words:
        manifest = verified.snapshot.manifest
        version = manifest["tool"]["version"] if manifest is not None else ""
        facts.append(f"not compared, as ema-cli {version} wrote it, and this is {__version__}")
        facts[-1] += f": {', '.join(verified.own_words)}"
    if verified.unknown:
        facts.append(f"not compared: {', '.join(verified.unknown)}")
    if verified.overruled:
        facts.append(f"its clocks are not those that the checkpoints record: {', '.join(verified.overruled)}")
    signature = verified.signature
    if signature is not None and not signature.checked:
        facts.append(f"its signature {signature.name} is not checked")
    if signature is not None and signature.not_covered:
        facts.append(f"its signature does not cover {' and '.join(signature.not_covered)}")
    problems = [f"{verified.published.path}: {fact} ({at_terminal('strict', 'True')})" for fact in facts]
    return replace(verified, problems=(*verified.problems, *problems))


def verify(
    published: Published,
    *,
    allow_extra: Sequence[str] = (),
    signed_by: Sequence[PublicKey] = (),
    may_name_classes: bool = False,
    threads: int = 1,
    progress: ProgressCallback = no_progress,
) -> Verified:
    """Read an average once and return its problems.

    Args:
        published: the paths of the average, its manifest and its checksums.
        allow_extra: patterns of the names of files that may lie there, too, or, of the model card, be edited.
        signed_by: public keys, one of which must have signed it; none if nobody asks who did.
        may_name_classes: whether what is in the form of its input may name classes, whose code runs where it is
            loaded. Then it must be compared with the checkpoints, too.
        threads: the number of files that are read at the same time.
        progress: called with the bytes read so far and the total.

    Raises:
        CheckpointError: if this process cannot read a file or a folder, or one changes meanwhile.
    """
    if not published.vouched:
        snapshot = Snapshot(published)
        fact = (
            f"has neither a manifest ({published.manifest.name}) nor sums ({published.sums.name}), which say what it "
            f"must be; average again, without --no-manifest{published.unfinished}"
        )
        if not (published.is_folder or published.path.name.lower().endswith(WEIGHT_SUFFIXES)):
            fact = "lies among averages, and ema-cli did not write it there"
        problem = snapshot.problem("" if published.is_folder else published.path.name, fact)
        return Verified(snapshot, (problem,))
    snapshot = take_snapshot(
        published, allow_extra=allow_extra, may_name_classes=may_name_classes, threads=threads, progress=progress
    )
    problems = all_problems(snapshot)
    signature, unsigned = check_signature(snapshot, signed_by)
    for file in snapshot.files.values():
        file.check_unchanged()
    return Verified(snapshot, (*problems, *unsigned), signature=signature)
