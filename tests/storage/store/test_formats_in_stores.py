"""Every format is read from a store: the runs of the table of formats, put into one in memory."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
import torch

from ema_cli.storage.names import StorePath
from tests.conftest import Cli
from tests.docs.table.runs import READ
from tests.docs.table.test_table import LAW, load_output
from tests.storage.stores import put_folder

_numbers = count()
SOME = ("Hugging Face Trainer", "torch.save, zip", "Composer", "torch.distributed.checkpoint", "DeepSpeed")


def check(row: str, number: int, cli: Cli, tmp_path: Path) -> None:
    """Average a run of the table from a store, and compare with float64 arithmetic."""
    case = READ[row][number](tmp_path / "run")
    address = StorePath(f"memory://table-{next(_numbers)}/run")
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    put_folder(address, {path.relative_to(tmp_path / "run").as_posix(): path.read_bytes() for path in files})
    law = () if "--half-life" in case.arguments else LAW
    target = "out" if len(case.prefixes) > 1 else "out.safetensors"
    done = cli("average", address, *law, *case.arguments, "-o", target)
    assert done.code == 0, done
    written, expected = load_output(tmp_path / target), case.expected()
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(written[name], tensor, rtol=0 if case.dtype is None else 2**-8, atol=2e-7, msg=name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("row", SOME)
def test_a_run_in_a_store_is_averaged(row: str, cli: Cli, tmp_path: Path):
    """A file, a folder, a container of several files: the average that float64 arithmetic gives."""
    check(row, 0, cli, tmp_path)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize(
    ("row", "number"), [(row, number) for row in READ if row != "Orbax" for number in range(len(READ[row]))]
)
def test_every_run_of_the_table_is_averaged_from_a_store(row: str, number: int, cli: Cli, tmp_path: Path):
    """Whatever the trainer. Orbax's reader reaches no store in memory: test_orbax_in_stores.py has a real one."""
    check(row, number, cli, tmp_path)
