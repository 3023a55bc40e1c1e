"""Write the manifest and the sums of each average."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ema_cli.errors import EmaError
from ema_cli.manifest.fingerprint import Watch, fingerprints
from ema_cli.manifest.libraries import library_versions
from ema_cli.manifest.manifest import make_manifest, manifest_text, read_manifest, tensor_row
from ema_cli.manifest.sums import are_there, manifest_path, sums_path, sums_text
from ema_cli.manifest.types import InputFacts, Manifest, TensorRow
from ema_cli.planning import advice
from ema_cli.runs.warnings import Remarks, lines_of
from ema_cli.storage.checksums import Checksums
from ema_cli.storage.output_stream import WrittenFile, write_file

if TYPE_CHECKING:
    from ema_cli.checkpoint import Checkpoint
    from ema_cli.folding.fold import Factored
    from ema_cli.folding.non_finite import NonFinite
    from ema_cli.planning.plan import Plan
    from ema_cli.writing.output_options import OutputOptions
    from ema_cli.writing.outputs import Output


class Record:
    """Makes the manifests of averages that are written in one pass.

    Attributes:
        fingerprints: those of the checkpoints.
        checksums: where to report the bytes that are read of the checkpoints, or what others summed up; None if their
            sums are not wanted.
    """

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        options: OutputOptions,
        copied: Collection[str],
        *,
        checksum: bool,
        threads: int,
        remarks: Remarks,
        watch: Watch | None = None,
        known: Sequence[str] | None = None,
        differing: Sequence[tuple[str, Checkpoint]] = (),
    ) -> None:
        """Take the fingerprints of the inputs.

        Args:
            checkpoints: those that are read, oldest first.
            options: the form of the outputs.
            copied: names of tensors that are copied because the user wants it.
            checksum: also record the sums of all that is read.
            threads: how many fingerprints to take at once.
            remarks: are put before those on the plan.
            watch: looks at what is read for the fingerprints.
            known: the fingerprint of each, where they were taken before: nothing is read then.
            differing: what a comparison of all bytes gave to warn of, in words, each with its checkpoint.

        Raises:
            CheckpointError: where an input cannot be read.
        """
        self._checkpoints = checkpoints
        self._checksum = checksum
        self._options = options
        self._copied = copied
        self._remarks = remarks
        self._differing = differing
        self._known: dict[Checkpoint, InputFacts] = {}
        self._libraries = library_versions()  # as they are before the output is written
        self.fingerprints = fingerprints(checkpoints, threads, watch) if known is None else list(known)
        self._fingerprints = dict(zip(checkpoints, self.fingerprints, strict=True))
        self.begin(checkpoints)

    def begin(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Begin a pass, which reads these checkpoints; the manifests of its averages are made after it."""
        self._checkpoints = checkpoints
        self.checksums = Checksums(len(checkpoints)) if self._checksum else None

    def manifest(
        self,
        output: Output,
        plan: Plan,
        written: Mapping[str, WrittenFile],
        non_finite: NonFinite,
        factored: Factored | None = None,
    ) -> Manifest:
        """Return the manifest of one average, still without its tensors.

        Args:
            output: the average.
            plan: the plan that it follows.
            written: its files by name.
            non_finite: which of its tensors hold NaN or infinity.
            factored: how near A and B come to the average of their products; None where that is not wanted.
        """
        remarks = self.remarks(plan, non_finite)
        return make_manifest(
            plan,
            options=self._recorded_options(output, plan),
            fingerprints={entry.checkpoint: self._fingerprints[entry.checkpoint] for entry in plan.read},
            blocks=self._blocks(plan),
            outputs=written,
            warnings=remarks.warnings,
            notes=remarks.notes,
            libraries=self._libraries,
            classes=None if output.likeness is None else output.likeness.classes,
            factored=factored,
            known=self._known,
        )

    def is_made(self, output: Output, plan: Plan, *, thorough: bool) -> bool:
        """Return whether an average is at its place, by its manifest there: of the same inputs, made the same.

        Its files are there with the sizes that the manifest says, and with its sums, if that is `thorough`.
        """
        path = manifest_path(output.target.path, is_folder=output.target.is_folder)
        try:
            there = read_manifest(path)
        except EmaError:
            return False
        own = make_manifest(
            plan,
            options=self._recorded_options(output, plan),
            fingerprints={entry.checkpoint: self._fingerprints[entry.checkpoint] for entry in plan.read},
            blocks=None,
            outputs={},
            warnings=[],
            notes=[],
            libraries=self._libraries,
        )
        inputs = [[(row["name"], row["weight"], row["fingerprint"]) for row in one["inputs"]] for one in (own, there)]
        alike = [[one["tool"], one["libraries"], one["recipe"]] for one in (own, there)]
        folder = path.parent
        is_same = inputs[0] == inputs[1] and alike[0] == alike[1]
        return is_same and are_there(folder, there["outputs"], thorough=thorough)

    def remarks(self, plan: Plan, non_finite: NonFinite, of_run: Remarks | None = None) -> Remarks:
        """Return what the manifest of one average says of it, without repetition.

        Args:
            plan, non_finite: as of `manifest`.
            of_run: what is said of the run; None for what the plan's run gives.
        """
        of_run = of_run or Remarks.of(plan.run, [entry.checkpoint for entry in plan.read])
        if self._options.exact_lora is not None:
            of_run = of_run.of_products()
        read = {entry.checkpoint for entry in plan.read}
        warnings = [
            *self._remarks.warnings,
            *of_run.warnings,
            *lines_of([(text, checkpoint) for text, checkpoint in self._differing if checkpoint in read]),
            *plan.advice.warnings,
            *advice.non_finite_warnings(sorted(non_finite.let_through)),
        ]
        return Remarks(tuple(dict.fromkeys(warnings)), tuple(dict.fromkeys([*self._remarks.notes, *of_run.notes])))

    def write(
        self, manifest: Manifest, output: Output, plan: Plan, folder: Path, non_finite: NonFinite
    ) -> dict[str, str]:
        """Write the manifest and the sums into the `folder` that holds the files of the average.

        Return the sum of each file by name, these two included.

        Raises:
            OutputError: where they cannot be written.
        """
        is_folder = output.target.is_folder
        average = folder if is_folder else folder / output.target.path.name
        path = manifest_path(average, is_folder=is_folder)
        sha256 = write_file(path, manifest_text(manifest, self.tensors(output, plan, non_finite))).sha256
        sums = {row["name"]: row["sha256"] for row in manifest["outputs"]} | {path.name: sha256}
        listing = sums_path(average, is_folder=is_folder)
        return sums | {listing.name: write_file(listing, [sums_text(sums)]).sha256}

    def tensors(self, output: Output, plan: Plan, non_finite: NonFinite) -> Iterator[TensorRow]:
        """Yield the rows of the manifest for the tensors of one average, by name."""
        newest, non_finite_names = plan.newest.tensors.specs, non_finite.names
        written = [(output.whole(file, name), name, file) for file in output.files for name in file.table.specs]
        for whole, name, file in sorted(written, key=lambda row: row[0]):
            spec, original = file.table.specs[name], output.original(file, name)
            why = _why_copied(original, plan) if original in self._copied else None
            yield tensor_row(whole, spec, newest[original], why, non_finite=original in non_finite_names)

    def _recorded_options(self, output: Output, plan: Plan) -> dict[str, Any]:
        return {
            **self._options.to_dict(),
            "copy": list(plan.run.options.read.copy),
            "format": _format(output),
            "folder": output.target.is_folder,
        }

    def _blocks(self, plan: Plan) -> dict[Checkpoint, list[str]] | None:
        """Return the sums of the blocks that were read of the checkpoints of one plan; None if nobody wants them."""
        if self.checksums is None:
            return None
        read = {entry.checkpoint for entry in plan.read}  # the other averages may read more
        return {
            checkpoint: self.checksums.blocks(number, newest=checkpoint is plan.newest)
            for number, checkpoint in enumerate(self._checkpoints)
            if checkpoint in read
        }


def _format(output: Output) -> str:
    return "input" if output.likeness is not None else output.target.format


def _why_copied(name: str, plan: Plan) -> str:
    """Return the option by which a tensor is copied, or that it is the base model's."""
    patterns = plan.run.options.read.copy
    asked = (f"--copy '{pattern}'" for pattern in patterns if fnmatch.fnmatchcase(name, pattern))
    return next(asked, "of the base model, as it is there")
