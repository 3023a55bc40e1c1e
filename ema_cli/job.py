"""All that one averaging will do, checked and laid out, and how it is done in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from ema_cli.checkpoint import Checkpoint, TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.errors import RunError
from ema_cli.folding.blocks import bytes_to_read, make_groups
from ema_cli.folding.buffers import BufferSizes
from ema_cli.folding.fold import Average, Folded, fold
from ema_cli.folding.kernel import WeightTable
from ema_cli.folding.sample import Sample
from ema_cli.folding.sink import Sink
from ema_cli.formats.adapters.pairs import bytes_of
from ema_cli.formats.adapters.without_pairs import WithoutPairs
from ema_cli.planning.plan import Plan
from ema_cli.runs.ties import with_ties
from ema_cli.storage.checksums import Checksums
from ema_cli.storage.location import location
from ema_cli.storage.names import StorePath
from ema_cli.system.progress import ProgressCallback, no_progress
from ema_cli.writing.output_options import OutputOptions
from ema_cli.writing.outputs import Output
from ema_cli.writing.replacing import check_target
from ema_cli.writing.target import Target, published_target


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
        from ema_cli.storage.store.store_stream import memory_of_streams  # which only those need who write to a store

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

    def of_averages(self, begin: int, end: int) -> Job:
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


def checkpoints_read(plans: Sequence[Plan]) -> list[Checkpoint]:
    """Return the checkpoints that enter any of the averages, oldest first."""
    return any_of(plans, [entry.checkpoint for plan in plans for entry in plan.read])


def any_of(plans: Sequence[Plan], checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Return the checkpoints without repetition, in the order of the run."""
    if any(plan.run.checkpoints is not plans[0].run.checkpoints for plan in plans):
        raise RunError("the plans are of several runs", hint="average them one by one")
    wanted = set(checkpoints)
    return [checkpoint for checkpoint in plans[0].run.checkpoints if checkpoint in wanted]
