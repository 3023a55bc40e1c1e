"""What libraries wrote is averaged as it lies there, and gives the average of what each library loads."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.conftest import Cli, oracle
from tests.libraries.rows import DATA, LIBRARIES, Library


def weights(clocks: list[int], half_life: int) -> list[float]:
    """Return the share of each checkpoint where each is an update: the law, written step by step."""
    shares = [1.0]
    for older, newer in pairwise(clocks):
        kept = 2 ** -((newer - older) / half_life)
        shares = [kept * share for share in shares] + [1 - kept]
    return shares


def expected(row: Library, half_life: int) -> dict[str, object]:
    """Return the average in float64 of what the library loads."""
    saved = [row.load(DATA / row.folder / path) for path in row.checkpoints]
    return dict(oracle(saved, weights(list(row.checkpoints.values()), half_life)))


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_run_that_a_library_wrote_is_averaged(name: str, cli: Cli, tmp_path: Path) -> None:
    """Clocks are found without help; every number is that of the average in float64, rounded once."""
    row = LIBRARIES[name]
    clocks = list(row.checkpoints.values())
    half_life = clocks[-1] - clocks[0]
    law = ("--half-life", f"{half_life}{row.unit}", "--update-interval", "every")
    done = cli("average", DATA / row.folder, *law, *row.arguments, "-o", tmp_path / "out")
    assert done.code == 0, done
    written = {}
    for path in (tmp_path / "out").rglob("*.safetensors"):
        written.update(load_file(path))
    values = expected(row, half_life)
    assert written.keys() == values.keys()
    for tensor, value in values.items():
        assert written[tensor].dtype == value.dtype
        assert abs(written[tensor].double() - value.double()).max() <= 1e-6 * max(1, abs(value.double()).max()), tensor
    assert cli("verify", tmp_path / "out", "--against", DATA / row.folder).code == 0
    for file in row.side_files:
        assert (tmp_path / "out" / file).is_file(), file
