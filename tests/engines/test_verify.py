"""An average is compared with its checkpoints by several workers: the same words as by one process."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

import pytest

from ema_cli.averaging import average
from ema_cli.engines.engine import Engine
from ema_cli.release.published import find_averages
from ema_cli.release.recompute import verify_against
from ema_cli.release.verify import Verified, verify
from tests.conftest import Cli
from tests.engines.runs import RUNS
from tests.engines.test_equal_bytes import plans

pytestmark = pytest.mark.usefixtures("small_tasks", "small_blocks")


def compared(place: Path, run: Path, executor: Executor | None) -> Verified:
    (published,) = find_averages([place], ())
    engine = None if executor is None else Engine("x", executor)
    return verify_against(verify(published), [run], engine=engine)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "x"])
@pytest.mark.parametrize("run", RUNS)
def test_what_is_whole_and_what_is_not(tmp_path: Path, executor: Executor, run: str, name: str):
    """All holds; and of bytes that were changed in three places, workers find what one process finds."""
    folder = RUNS[run](tmp_path / run)
    average(plans(folder, "200ba"), tmp_path / name, checksum=True, dtype="float32")
    whole = compared(tmp_path / name, folder, executor)
    assert whole.problems == ()
    assert whole.against is not None
    assert whole.against.tensors > 3
    file = next(iter([*(tmp_path / name).glob("*.safetensors"), tmp_path / name]))
    data = bytearray(file.read_bytes())
    for share in (5, 6, 7):
        data[len(data) * share // 10] ^= 1
    file.write_bytes(data)
    one, several = (compared(tmp_path / name, folder, each) for each in (None, executor))
    assert one.problems
    assert several.problems == one.problems
    assert one.against is not None
    assert several.against is not None
    # A tensor that is tied to one of another task is read by both.
    assert replace(several.against, bytes_read=one.against.bytes_read) == one.against


def test_the_command_line(tmp_path: Path, cli: Cli):
    """--on is for --against."""
    RUNS["transformers"](tmp_path / "run")
    cli("average", "run", "--half-life", "200ba", "-o", "x")
    done = cli("verify", "x", "--against", "run", "--on", "processes=1")
    assert done.code == 0, done
    assert "all bytes are those of 3 checkpoints averaged anew" in done.out
    assert cli("verify", "x", "--on", "processes=1").code == 2


def test_a_sample_is_compared_by_the_one_who_asks(tmp_path: Path, cli: Cli):
    """Workers are not needed for it: what it finds is what it finds without them."""
    RUNS["transformers"](tmp_path / "run")
    cli("average", "run", "--half-life", "200ba", "-o", "x")
    sample = ("verify", "x", "--against", "run", "--sample", "--seed", "1")
    one, several = (cli(*sample, *more) for more in ((), ("--on", "processes=1")))
    assert (one.code, one.out) == (several.code, several.out) == (0, one.out)
    assert "up to 65,536 elements of each tensor" in one.out
