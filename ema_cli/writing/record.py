"""Record what is done while it is done: the manifest and the sums of each average."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ema_cli.manifest.fingerprint import fingerprints
from ema_cli.manifest.manifest import make_manifest, manifest_text, tensor_row
from ema_cli.manifest.sums import manifest_path, sums_path, sums_text
from ema_cli.manifest.types import Manifest, TensorRow
from ema_cli.planning import advice
from ema_cli.runs import warnings
from ema_cli.storage.checksums import Checksums
from ema_cli.storage.output_stream import WrittenFile, write_file

if TYPE_CHECKING:
    from ema_cli.checkpoint import Checkpoint, TensorSpec
    from ema_cli.folding.non_finite import NonFinite
    from ema_cli.planning.plan import Plan
    from ema_cli.writing.outputs import Output, OutputOptions


class Record:
    """What is known of the inputs of some averages; with `checksum` the sums of all that is read, too.

    Raises:
        CheckpointError: where an input cannot be read.
    """

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        options: OutputOptions,
        copied: Collection[str],
        *,
        checksum: bool,
        threads: int,
        warnings: Sequence[str],
    ) -> None:
        self._checkpoints = checkpoints
        self._options = options
        self._copied = copied
        self._warnings = warnings
        found = fingerprints(checkpoints, threads)
        self._fingerprints = {id(each): found for each, found in zip(checkpoints, found, strict=True)}
        self.checksums = Checksums(len(checkpoints)) if checksum else None

    def manifest(
        self, output: Output, plan: Plan, written: Mapping[str, WrittenFile], non_finite: NonFinite
    ) -> Manifest:
        """Return the manifest of one average, less its tensors; `written` are its files."""
        found = warnings.run_warnings(plan.run, [each.checkpoint for each in plan.read])
        odd = [
            *self._warnings,
            *found,
            *plan.advice.warnings,
            *advice.non_finite_warnings(sorted(non_finite.let_through)),
        ]
        read = {id(each.checkpoint) for each in plan.read}
        return make_manifest(
            plan,
            self._written_options(output),
            {key: fingerprint for key, fingerprint in self._fingerprints.items() if key in read},
            self._blocks(plan),
            written,
            list(dict.fromkeys(odd)),
        )

    def write(self, manifest: Manifest, output: Output, plan: Plan, folder: Path, non_finite: NonFinite) -> None:
        """Write the manifest and the sums where the files of the average are."""
        is_folder = output.target.is_folder
        place = folder if is_folder else folder / output.target.path.name
        path = manifest_path(place, is_folder=is_folder)
        sha256 = write_file(path, manifest_text(manifest, self.tensors(output, plan, non_finite))).sha256
        sums = {each["name"]: each["sha256"] for each in manifest["outputs"]}
        write_file(sums_path(place, is_folder=is_folder), [sums_text({**sums, path.name: sha256})])

    def tensors(self, output: Output, plan: Plan, non_finite: NonFinite) -> Iterator[TensorRow]:
        """Return what the manifest of one average tells of each tensor, by name."""
        newest, non_finite_names = plan.newest.tensors.specs, non_finite.names

        def row(name: str, spec: TensorSpec) -> TensorRow:
            original = output.original(name)
            why = self._why(original) if original in self._copied else None
            return tensor_row(name, spec, newest[original], why, non_finite=original in non_finite_names)

        return starmap(row, sorted((name, spec) for file in output.files for name, spec in file.table.specs.items()))

    def _written_options(self, output: Output) -> dict[str, Any]:
        options = self._options
        return {
            "dtype": options.dtype.name if options.dtype else None,
            "copy": list(options.copy),
            "max_shard_size": options.max_shard_size,
            "allow_non_finite": options.allow_non_finite,
            "format": "pt" if output.target.is_torch else "safetensors",
            "folder": output.target.is_folder,
        }

    def _blocks(self, plan: Plan) -> dict[int, list[str]] | None:
        if self.checksums is None:
            return None
        read = {id(each.checkpoint) for each in plan.read}  # others are, for the other averages
        return {
            id(each): self.checksums.blocks(number, newest=each is plan.newest)
            for number, each in enumerate(self._checkpoints)
            if id(each) in read
        }

    def _why(self, name: str) -> str:
        """Return which pattern says that a tensor is copied."""
        return next(f"--copy '{each}'" for each in self._options.copy if fnmatch.fnmatchcase(name, each))
