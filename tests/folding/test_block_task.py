"""One block, done anywhere: from data that is pickled, and from files that are opened again."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ema_cli.checkpoint import Checkpoint
from ema_cli.dtypes import DTYPES
from ema_cli.folding.block_task import BlockTask, CheckpointReader, run_block
from ema_cli.folding.blocks import make_blocks, make_groups
from ema_cli.folding.kernel import WeightTable, WorkspaceSize
from ema_cli.folding.kernel.numpy_kernel import NUMPY
from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import ReadOptions
from tests.folding.in_memory import checkpoint

ROW_BYTES = 256
AVERAGES = ([0.25, 0.25, 0.5], [0.5, 0.5, 0.0])

ELSEWHERE = """
import pickle, sys
from ema_cli.dtypes import DTYPES
from ema_cli.folding.block_task import CheckpointReader, run_block
from ema_cli.folding.kernel.numpy_kernel import NUMPY
from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import ReadOptions

paths, size, tasks = pickle.load(sys.stdin.buffer)
reader = CheckpointReader([open_checkpoint(path, ReadOptions()) for path in paths])
workspace = NUMPY.workspace(size)
outputs = [(output.average, bytes(output.data)) for task in tasks for output in run_block(task, reader, workspace)]
pickle.dump(outputs, sys.stdout.buffer)
"""


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Return three files with tensors of several dtypes, one of them with a mask."""
    random = torch.Generator().manual_seed(0)
    paths = []
    for step in (1, 2, 3):
        tensors = {
            "wide": torch.randn(300, generator=random),
            "narrow": torch.randn(17, 5, generator=random).bfloat16(),
            "half": torch.randn(40, generator=random).half(),
            "mask": torch.tensor([-torch.inf, float(step), 3e38 * (-1) ** step]),
            "count": torch.tensor([step]),
        }
        paths.append(tmp_path / f"step-{step}.safetensors")
        save_file(tensors, paths[-1])
    return paths


def tasks_of(checkpoints: list[Checkpoint], rows: int) -> list[BlockTask]:
    """Return the tasks of a fold into AVERAGES."""
    targets = {name: spec.dtype for name, spec in checkpoints[-1].tensors.specs.items()}
    blocks = make_blocks(checkpoints, make_groups(checkpoints, targets, frozenset()), ROW_BYTES)
    return [BlockTask(number, block, WeightTable.of(AVERAGES), rows) for number, block in enumerate(blocks)]


def outputs_of(checkpoints: list[Checkpoint], rows: int) -> list[tuple[int, bytes]]:
    """Return the number and the bytes of each average of each block."""
    reader = CheckpointReader(checkpoints)
    workspace = NUMPY.workspace(WorkspaceSize(rows=rows, row_bytes=ROW_BYTES, averages=2, bases=2))
    return [
        (output.average, bytes(output.data))
        for task in tasks_of(checkpoints, rows)
        for output in run_block(task, reader, workspace)
    ]


def test_another_process_gets_the_same_bytes_from_pickled_tasks(paths: list[Path]):
    """Tasks are data: a process that has only them and the paths of the checkpoints makes the same blocks."""
    checkpoints = [open_checkpoint(path, ReadOptions()) for path in paths]
    size = WorkspaceSize(rows=2, row_bytes=ROW_BYTES, averages=2, bases=2)
    sent = pickle.dumps((paths, size, tasks_of(checkpoints, rows=2)))
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], input=sent, capture_output=True, check=True)
    outputs = pickle.loads(done.stdout)
    assert len(outputs) > 10
    assert outputs == outputs_of(checkpoints, rows=2)


def test_the_number_of_rows_does_not_show_in_the_bytes(paths: list[Path]):
    """Checkpoints may be added one by one or together."""
    checkpoints = [open_checkpoint(path, ReadOptions()) for path in paths]
    expected = outputs_of(checkpoints, rows=1)
    assert outputs_of(checkpoints, rows=2) == expected
    assert outputs_of(checkpoints, rows=5) == expected


def test_the_reader_knows_where_in_the_file_a_block_begins(paths: list[Path]):
    """The bytes at that offset are those of the block; in memory there is no such place."""
    checkpoints = [open_checkpoint(path, ReadOptions()) for path in paths]
    reader = CheckpointReader(checkpoints)
    for task in tasks_of(checkpoints, rows=2):
        for number, path in enumerate(paths):
            row = bytearray(task.block.dtypes[number].nbytes(task.block.count))
            reader.read(task, [number], [memoryview(row)])
            begin = reader.offset(task, number)
            assert path.read_bytes()[begin : begin + len(row)] == row
    unplaced = [checkpoint({"w": torch.ones(3)})]
    assert CheckpointReader(unplaced).offset(tasks_of(unplaced * 3, rows=2)[0], 0) == 0


def test_a_block_is_copied_if_there_is_nothing_to_average():
    """Integers are copied; so are the floats of a lone checkpoint, unless they get another dtype."""
    saved = [checkpoint({"w": torch.ones(3), "n": torch.tensor([step])}) for step in (1, 2)]

    def copied(checkpoints: list[Checkpoint], dtype: str) -> list[bool]:
        groups = make_groups(checkpoints, {"w": DTYPES[dtype], "n": DTYPES["I64"]}, frozenset())
        table = WeightTable.of([[1 / len(checkpoints)] * len(checkpoints)])
        return [BlockTask(0, block, table, 1).is_copied for block in make_blocks(checkpoints, groups, ROW_BYTES)]

    assert copied(saved, "F32") == [False, True]
    assert copied(saved[:1], "F32") == [True, True]
    assert copied(saved[:1], "BF16") == [False, True]


def test_copied_blocks_come_from_the_newest_that_enters_each_average():
    """Of two averages with different newest checkpoints each has its own integers."""
    saved = [checkpoint({"n": torch.tensor([step])}) for step in (1, 2, 3)]
    assert outputs_of(saved, rows=1) == [
        (0, torch.tensor([3]).numpy().tobytes()),
        (1, torch.tensor([2]).numpy().tobytes()),
    ]
