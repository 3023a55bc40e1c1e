"""Checked plans and laid-out outputs: all that one averaging will do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from ema_cli.checkpoint import Checkpoint, TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.dtypes import DType
from ema_cli.errors import OutputError, RunError, UsageError, option
from ema_cli.folding.blocks import bytes_to_read, make_groups
from ema_cli.folding.buffers import BufferSizes
from ema_cli.folding.fold import Average, Folded, fold
from ema_cli.folding.kernel import WeightTable
from ema_cli.folding.sample import Sample
from ema_cli.folding.sink import Sink
from ema_cli.formats.adapters.pairs import bytes_of
from ema_cli.formats.adapters.without_pairs import WithoutPairs
from ema_cli.planning.plan import Plan
from ema_cli.runs.entering import averaged_error
from ema_cli.runs.same_model import check_same_model
from ema_cli.runs.tensor_rules import check_averageable, copied_names
from ema_cli.runs.ties import with_ties
from ema_cli.storage.checksums import Checksums
from ema_cli.storage.location import location
from ema_cli.storage.names import StorePath
from ema_cli.storage.output_stream import WRITE_ELSEWHERE
from ema_cli.system.progress import ProgressCallback, no_progress
from ema_cli.writing.layout import lay_out_output
from ema_cli.writing.output_options import OutputOptions
from ema_cli.writing.outputs import Output, output_specs
from ema_cli.writing.replacing import check_target
from ema_cli.writing.target import Target, assign_targets, published_target

_ROOM_FOR_STORE = "it is made in the folder for temporary files first: make room there, or let TMPDIR name another"


@dataclass(frozen=True)
class Job:
    """One averaging, checked and laid out: each plan has its output, and each checkpoint of any plan is read once.

    Attributes:
        checkpoints: those that are read, oldest first.
        copied: names of tensors that are copied from the newest, though they could be averaged.
        manifest: whether a manifest and sums are written; the model card tells of them.
        force: whether an output that is there is replaced.
        readymade: for each plan its average, made already in wider types, which is read in place of the checkpoints;
            empty where these are read.
    """

    plans: Sequence[Plan]
    checkpoints: Sequence[Checkpoint]
    outputs: Sequence[Output]
    options: OutputOptions
    copied: frozenset[str]
    manifest: bool = True
    force: bool = False
    readymade: Sequence[Checkpoint] = ()

    @cached_property
    def target(self) -> Target:
        """Return what is published."""
        return published_target([output.target for output in self.outputs])

    @cached_property
    def newest(self) -> int:
        """Return how many of the checkpoints are the newest of a plan."""
        return len({plan.newest for plan in self.plans})

    @cached_property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """Return the tensors of each output, by their names in the checkpoints."""
        return self.plans[0].newest.tensors.specs

    @cached_property
    def bytes_to_read(self) -> int:
        """Return how many bytes of tensors enter."""
        groups = make_groups(self.tied, self.outputs[0].dtypes, self.copied)
        return bytes_to_read(self.tied, groups, WeightTable.of(self.weights).bases)

    @cached_property
    def bytes_to_write(self) -> int:
        """Return the size of all outputs."""
        return sum(output.nbytes for output in self.outputs)

    @cached_property
    def is_sent(self) -> bool:
        """Return whether the files of tensors go to a store while they are made: in the order of the fold only."""
        order = list(self.outputs[0].dtypes)
        in_order = all(output.files_at_once and list(output.dtypes) == order for output in self.outputs)
        return isinstance(self.target.path, StorePath) and in_order

    @cached_property
    def bytes_on_disk(self) -> int:
        """Return how much of the outputs is made on a disk: of what is sent, the small files alone."""
        sent = sum(sum(output.sizes_sent) for output in self.outputs) if self.is_sent else 0
        return self.bytes_to_write - sent

    def bytes_sending(self, averages: int) -> int:
        """Return the memory for what is on its way to a store, or waits there for the rest, of so many averages."""
        if not self.is_sent:
            return 0
        from ema_cli.storage.around import AHEAD_BYTES
        from ema_cli.storage.store_stream import memory_of_streams  # which only those need who write to a store

        at_once = self.files_at_once
        needed = (memory_of_streams(output.sizes_sent, averages, at_once) for output in self.outputs)
        copied = any(output.likeness is not None or output.large_copies for output in self.outputs)
        return averages * (max(needed) + at_once * AHEAD_BYTES * copied)

    @cached_property
    def files_at_once(self) -> int:
        """Return how many files of one average are written at the same time."""
        return max(output.files_at_once for output in self.outputs)

    @cached_property
    def bytes_to_factor(self) -> int:
        """Return about how many bytes of memory it takes to factor products of an adapter's A and B; else 0."""
        pairs = self.outputs[0].pairs
        return bytes_of(pairs, self.tensors, len(self.checkpoints)) if pairs else 0

    @cached_property
    def bytes_free(self) -> int:
        """Return how much room the disk has that the outputs go to."""
        return location(self.target.path.absolute().parent).free_bytes()

    def check_target(self) -> None:
        """Check that the outputs may be written where they go.

        Raises:
            OutputError: where something is there without `force`, or is an input.
        """
        inputs = [file for checkpoint in self.plans[0].run.checkpoints for file in checkpoint.files]
        check_target(self.target, inputs, force=self.force)

    def part(self, begin: int, end: int) -> Job:
        """Return the job of the averages from number `begin` to before `end`, which may be done by itself."""
        plans = self.plans[begin:end]
        return replace(
            self,
            plans=plans,
            checkpoints=checkpoints_read(plans),
            outputs=self.outputs[begin:end],
            readymade=self.readymade[begin:end],
        )

    @cached_property
    def weights(self) -> list[list[float]]:
        """Return the weights of each plan: one for each checkpoint."""
        tables = [{entry.checkpoint: entry.weight for entry in plan.read} for plan in self.plans]
        return [[table.get(checkpoint, 0.0) for checkpoint in self.checkpoints] for table in tables]

    @cached_property
    def tied(self) -> Sequence[Checkpoint]:
        """Return the checkpoints with all names of the newest, also those that some only have tied to others."""
        return [with_ties(checkpoint, self.checkpoints[-1]) for checkpoint in self.checkpoints]

    def fold(
        self,
        sinks: Sequence[Sink],
        *,
        sizes: BufferSizes | None = None,
        checksums: Checksums | None = None,
        sample: Sample | None = None,
        progress: ProgressCallback = no_progress,
    ) -> Folded:
        """Make all averages in one pass, the bytes of each plan into its sink; see `folding.fold.fold`.

        Of an adapter whose products are averaged, A and B are folded, too, as all else is: so they are summed up, and
        searched for NaN. But what is written of them is made behind that, whole with a `sample`, too.
        """
        if self.readymade:
            done = [
                fold(
                    [made],
                    [Average([1.0], sink)],
                    self.outputs[0].dtypes,
                    copied=self.copied,
                    allow_non_finite=self.options.allow_non_finite,
                    sizes=sizes,
                )
                for made, sink in zip(self.readymade, sinks, strict=True)
            ]
            return Folded(sum(one.bytes_read for one in done), [one.non_finite[0] for one in done])
        averages = [Average(weights, sink) for weights, sink in zip(self.weights, sinks, strict=True)]
        rank, pairs = self.options.exact_lora, self.outputs[0].pairs
        others = averages if rank is None else [replace(one, sink=WithoutPairs.of(one.sink, pairs)) for one in averages]
        folded = fold(
            self.tied,
            others,
            self.outputs[0].dtypes,
            copied=self.copied,
            allow_non_finite=self.options.allow_non_finite,
            sample=sample,
            sizes=sizes,
            checksums=checksums,
            progress=progress,
        )
        if rank is None:
            return folded
        from ema_cli.formats.adapters.exact import write_products  # which loads numpy, and few averages need

        dtypes = self.outputs[0].dtypes
        factored = [write_products(pairs, self.tied, one.weights, rank, dtypes, one.sink) for one in averages]
        return replace(folded, factored=factored)


def prepare(
    plans: Sequence[Plan],
    target: Target | Sequence[Target],
    options: OutputOptions | None = None,
    *,
    force: bool,
    manifest: bool = True,
    may_be_made: bool = False,
) -> Job:
    """Check everything that headers can tell, and return what there is to do.

    Args:
        plans: those of one run.
        target: where their averages go; of several a folder, or a pattern, or one target for each.
        options: the form of the outputs.
        force: replace an output that is there.
        manifest: write a manifest and sums, too.
        may_be_made: whether another part of the same average may have published it; `perform` looks, then.

    Raises:
        UsageError, CheckpointError, RunError, OutputError: as `averaging.average`.
    """
    options = options or OutputOptions()
    like_input = options.like_input
    targets = assign_targets(target, plans, like_input=like_input) if isinstance(target, Target) else target
    unsharded = next((assigned for assigned in targets if assigned.is_dcp or not assigned.is_folder), None)
    if options.max_shard_size is not None and unsharded is not None:
        raise UsageError(
            f"is for a folder{' of safetensors' if unsharded.is_dcp else ''}, and this is one file",
            option="max_shard_size",
            hint=f"a name without a suffix: {option('o', 'DIR')}",
        )
    for plan in plans:
        refuse_damaged(plan)
        refuse_averaged(plan)
    job = replace(lay_out(plans, targets, options, manifest=manifest), force=force)
    if not may_be_made:
        job.check_target()
    location(job.target.path.absolute().parent).check_writable()
    free = job.bytes_free
    if job.bytes_on_disk > free:
        raise OutputError(
            f"needs {job.bytes_on_disk} bytes, but {free} are free",
            subject=job.target.path,
            hint=_ROOM_FOR_STORE if isinstance(job.target.path, StorePath) else f"make room, or {WRITE_ELSEWHERE}",
        )
    return job


def lay_out(plans: Sequence[Plan], targets: Sequence[Target], options: OutputOptions, *, manifest: bool = True) -> Job:
    """Check that the checkpoints are of one model that can be averaged, and lay out its outputs.

    Args:
        targets: where the average of each plan goes. Nothing there is looked at.

    Raises:
        CheckpointError, RunError, OutputError: as `prepare`.
    """
    dtype, copy = options.dtype, plans[0].run.options.read.copy
    entered = _of_any(plans, [entry.checkpoint for plan in plans for entry in plan.entries])
    newest = plans[0].newest
    copied = copied_names(newest.tensors.specs, copy)
    made = next((name for name in copied if name in newest.output_dtypes), None)
    if made is not None and plans[0].run.options.merge_into is not None:
        raise UsageError(
            f"'{made}' is made of the base model and the adapters: there is nothing to copy",
            option="copy",
            hint=f"leave out one of {option('copy', True)} and {option('merge_into', True)}",
        )
    if dtype is None:  # else they are rounded as all is
        copied |= newest.unchanged
    # What is copied may be missing in the newest, or have another shape in others.
    unlike = copied.union(*(copied_names(checkpoint.tensors.specs, copy) for checkpoint in entered)) if copy else copied
    check_same_model(entered, mixed_floats=dtype is not None, copied=unlike, base=plans[0].run.base)
    check_averageable(newest, copied)
    _check_alike(plans, dtype, copied)
    outputs: list[Output] = []
    texts: dict[bytes, bytes] = {}
    for plan, target in zip(plans, targets, strict=True):
        tables = [file.table for file in outputs[0].files] if outputs else []
        output = lay_out_output(plan, target, options, copied, tables, manifest=manifest)
        # An index is as long as the list of tensors, and the same for each average: one is kept.
        shared = {name: texts.setdefault(text, text) for name, text in output.texts.items()}
        outputs.append(replace(output, texts=shared))
    return Job(plans, checkpoints_read(plans), outputs, options, copied, manifest)


def checkpoints_read(plans: Sequence[Plan]) -> list[Checkpoint]:
    """Return the checkpoints that enter any of the averages, oldest first."""
    return _of_any(plans, [entry.checkpoint for plan in plans for entry in plan.read])


def _of_any(plans: Sequence[Plan], checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Return the checkpoints without repetition, in the order of the run."""
    if any(plan.run.checkpoints is not plans[0].run.checkpoints for plan in plans):
        raise RunError("the plans are of several runs", hint="average them one by one")
    wanted = set(checkpoints)
    return [checkpoint for checkpoint in plans[0].run.checkpoints if checkpoint in wanted]


def _check_alike(plans: Sequence[Plan], dtype: DType | None, copied: frozenset[str]) -> None:
    """Check that one fold makes each average as it would be alone.

    Copied tensors may differ between the newest checkpoints, and so may, with `dtype`, the float types that enter.
    """
    if len({id(entry.checkpoint.tensors.specs) for plan in plans for entry in plan.read}) == 1:
        return
    for plan in plans[1:]:
        kinds = [_kinds(one, dtype, copied) for one in (plans[0], plan)]
        different = [name for name in {**kinds[0], **kinds[1]} if kinds[0].get(name) != kinds[1].get(name)]
        if different:
            raise RunError(
                f"'{different[0]}' has not the types, or the shape, that it has for "
                f"{plans[0].recipe.law.words().short}",
                subject=plan.newest.path,
                hint="average them one by one",
            )


def _kinds(plan: Plan, dtype: DType | None, copied: frozenset[str]) -> dict[str, object]:
    """Return for each tensor its spec in the output, and the dtypes in which it enters unless it is copied."""
    written = output_specs(plan.newest, dtype, copied)
    tables = [entry.checkpoint.tensors.specs for entry in plan.read]
    distinct = list({id(specs): specs for specs in tables}.values())  # most checkpoints share one
    return {
        name: (spec, {specs[name].dtype.name for specs in distinct if name in specs} if name not in copied else None)
        for name, spec in written.items()
    }


def refuse_averaged(plan: Plan) -> None:
    """Raise a RunError if a checkpoint of the plan holds averages already: a second average smooths twice."""
    averaged = [entry.checkpoint for entry in plan.entries if entry.checkpoint.averages]
    begun = [checkpoint for checkpoint in averaged if checkpoint.averages and checkpoint.averages.begun]
    if averaged:
        raise averaged_error((begun or averaged)[0])


def refuse_damaged(plan: Plan) -> None:
    """Raise a CheckpointError for the first damaged checkpoint that `start` and `stop` do not leave out."""
    for damaged in plan.run.damaged:
        raise damaged.error
