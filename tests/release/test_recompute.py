"""Averages compared with what their checkpoints give when they are averaged anew."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ema_cli.errors import CheckpointError, NonFiniteError
from ema_cli.folding.sample import Sample
from ema_cli.release.published import find_averages
from ema_cli.release.recompute import verify_against
from ema_cli.release.verify import verify
from tests.conftest import Cli, write_torch_run
from tests.release.verified import (
    SINGLE,
    SINGLE_MANIFEST,
    Edit,
    against,
    begin_of,
    check,
    edit_header,
    edit_mark,
    flip,
    vouch,
)

SAMPLE_ELEMENTS = 65_536


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "run"), [("folder", "hf"), ("shards", "hf"), (SINGLE, "pt"), ("one.pt", "pt"), ("several", "pt")]
)
def test_averaged_anew_it_is_the_same(made: Path, name: str, run: str):
    """Averages of every form are what their checkpoints give."""
    for each in find_averages([made / name]):
        found = verify_against(verify(each), [made / run])
        assert found.problems == ()
        assert found.against is not None
        assert (found.against.checkpoints, found.against.tensors, found.against.bytes_read) == (3, 3, 200)


@pytest.mark.parametrize("name", ["folder", SINGLE, "one.pt"])
def test_bytes_that_the_checkpoints_do_not_give(copy: Path, name: str):
    """Bytes that were changed, with all sums made anew, are named: tensor, how many, and the first."""
    weights = copy / name / "model.safetensors" if name == "folder" else copy / name
    opened = check(copy / name).snapshot.opened[weights.name].tensors
    located, itemsize = opened.locate("layer.weight"), opened.specs["layer.weight"].dtype.itemsize
    assert located is not None
    flip(weights, located[1] + 3 * itemsize)
    flip(weights, located[1] + 5 * itemsize)
    vouch(copy / name)
    found = against(copy / name, copy / ("hf" if name == "folder" else "pt"))
    assert found.problems == (
        f"{weights}: 'layer.weight' is not what the checkpoints give: 2 bytes differ, the first in element 3",
    )
    assert found.against is not None
    assert (found.against.tensors_different, found.against.bytes_different) == (1, 2)


def test_side_files_that_the_checkpoints_do_not_give(copy: Path):
    """Configuration and tokenizer are compared, too."""
    (copy / "folder" / "tokenizer.json").write_text("[]")
    vouch(copy / "folder")
    assert against(copy / "folder", copy / "hf").problems == (
        f"{copy / 'folder' / 'tokenizer.json'}: is not what the newest checkpoint gives",
    )


def test_files_that_the_checkpoints_do_not_give(copy: Path):
    """A file that was added, and listed everywhere, is nothing that the checkpoints give."""
    (copy / "folder" / "code.py").write_text("x")
    edit_mark(copy / "folder" / "model.safetensors", lambda mark: mark["files"].insert(1, "code.py"))
    vouch(copy / "folder", lambda manifest: manifest["outputs"].append({"name": "code.py", "bytes": 0, "sha256": ""}))
    found = against(copy / "folder", copy / "hf").problems
    assert f"{copy / 'folder' / 'code.py'}: is nothing that the newest checkpoint gives" in found


@pytest.mark.parametrize("sample", [True, False])
def test_a_header_that_the_checkpoints_do_not_give(copy: Path, sample: bool):
    """More in the metadata than ema-cli writes is found, though every tensor and every sum is right."""
    edit_header(copy / SINGLE, lambda header: header["__metadata__"].update(more="x"))
    vouch(copy / SINGLE)
    assert check(copy / SINGLE).problems == ()
    (found,) = against(copy / SINGLE, copy / "pt", sample=sample).problems
    assert found.startswith(f"{copy / SINGLE}: holds the tensors that the checkpoints give, but something else around")


@pytest.mark.parametrize("text", [b"archive/version", b"little"])
def test_an_archive_that_the_checkpoints_do_not_give(copy: Path, text: bytes):
    """Of a file of torch's the records, before and behind the tensors, are compared, too."""
    data = (copy / "one.pt").read_bytes()
    flip(copy / "one.pt", data.rindex(text) if text != b"little" else data.index(text))
    vouch(copy / "one.pt")
    found = check(copy / "one.pt")
    again = against(copy / "one.pt", copy / "pt")
    assert again.problems
    assert found.problems or "something else around them" in again.problems[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "fact"),
    [
        (lambda told: told.update(effective_checkpoints=9.5), "says effective_checkpoints 9.5, but"),
        (lambda told: told.update(mean_age="1ba"), 'says mean_age "1ba", but'),
        (lambda told: told.update(approximation={"relative_error": 0, "least_error": 0}), "says approximation {"),
        (lambda told: told["inputs"][1].update(bytes=1), "says inputs[1].bytes 1, but"),
        (lambda told: told["inputs"][1].update(format="x"), 'says inputs[1].format "x", but'),
        (lambda told: told["inputs"][1].update(trainer="x"), 'says inputs[1].trainer "x", but'),
        (lambda told: told["tensors"][0].update(averaged=False, why="integer"), ".averaged false, but"),
        (lambda told: told["tensors"][0].update(non_finite=True), ".non_finite true, but"),
        (lambda told: told["recipe"].update(format="pt"), 'says recipe.format "pt", but'),
        (lambda told: told["recipe"].update(law="60ba"), "law is '60ba', but what it says of it is 50ba"),
    ],
)
def test_a_manifest_that_the_checkpoints_do_not_give(copy: Path, edit: Edit, fact: str):
    """What a manifest says is what one made anew says, though all sums were made to fit."""
    vouch(copy / SINGLE, edit)
    assert check(copy / SINGLE).problems == ()
    (found,) = against(copy / SINGLE, copy / "pt").problems
    assert found.startswith(f"{copy / SINGLE_MANIFEST}: ")
    assert fact in found


def test_sums_of_inputs_that_the_checkpoints_do_not_give(copy: Path, cli: Cli, tmp_path: Path):
    """The sums that --checksum left in a manifest are made anew; a sample, which reads less, passes over them."""
    out = tmp_path / "summed.safetensors"
    assert cli("average", copy / "pt", "--half-life", "50ba", "--checksum", "-o", out, "-q").code == 0
    assert against(out, copy / "pt").problems == ()
    vouch(out, lambda manifest: manifest["inputs"][2]["blocks"].__setitem__(0, "0" * 64))
    (found,) = against(out, copy / "pt").problems
    assert 'says inputs[2].blocks[0] "000' in found
    assert against(out, copy / "pt", sample=True).problems == ()


def test_a_checkpoint_that_has_changed(copy: Path):
    """A checkpoint of which another was made is named: that is no fault of the average."""
    path = copy / "pt/step-200.pt"
    saved = torch.load(path)
    saved["model"]["layer.bias"] += 1
    torch.save(saved, path)
    with pytest.raises(CheckpointError, match=r"step-200\.pt: has changed since it was averaged"):
        against(copy / SINGLE, copy / "pt")


def test_a_checkpoint_that_is_missing(copy: Path):
    """A checkpoint that is missing is named."""
    (copy / "pt/step-200.pt").unlink()
    with pytest.raises(CheckpointError, match=r"'step-200\.pt', which entered the average, is missing"):
        against(copy / SINGLE, copy / "pt")


def test_a_changed_checkpoint_hides_no_problem(copy: Path):
    """Where something else does not hold, that stays what is said first."""
    (copy / "pt/step-200.pt").unlink()
    flip(copy / SINGLE)
    found = against(copy / SINGLE, copy / "pt").problems
    assert "its sha256 is" in found[0]
    assert found[-1].startswith("not compared with the checkpoints: ")


def test_weights_that_the_law_does_not_give(copy: Path):
    """Weights that were changed in manifest and metadata, with all sums made anew, are not those of the law."""
    edit_mark(copy / SINGLE, lambda mark: mark["checkpoints"][1].__setitem__(2, 0.5))
    vouch(copy / SINGLE, lambda manifest: manifest["inputs"][1].update(weight=0.5))
    assert check(copy / SINGLE).problems == ()
    (found,) = against(copy / SINGLE, copy / "pt").problems
    assert found.startswith(f"{copy / SINGLE_MANIFEST}: the manifest's weights are not those that 50ba gives")


def test_a_sample_reads_little(tmp_path: Path, cli: Cli):
    """A sample is the beginning of each tensor, its end, and places between; it finds what differs there only."""
    count = 4 * SAMPLE_ELEMENTS
    for step in (1, 2, 3):
        tensors = {"big": torch.full((count,), float(step)), "small": torch.ones(7) * step}
        (tmp_path / "run").mkdir(exist_ok=True)
        torch.save({"model": tensors, "step": step}, tmp_path / "run" / f"step-{step}.pt")
    done = cli("average", "run", "--half-life", "2ba", "-o", "big.safetensors", "-q")
    assert done.code == 0, done
    out, run = tmp_path / "big.safetensors", tmp_path / "run"
    whole, part = against(out, run).against, against(out, run, sample=True).against
    assert whole is not None
    assert part is not None
    assert whole.bytes_read == 3 * 4 * (count + 7)
    ranges = Sample("seed").ranges("big", count)
    assert part.bytes_read == 3 * 4 * (sum(taken for _, taken in ranges) + 7) <= 3 * 4 * (SAMPLE_ELEMENTS + 7)
    begin = begin_of(out, "big")

    def is_seen(element: int, seed: str = "seed") -> bool:
        flip(out, begin + 4 * element)
        vouch(out)
        problems = against(out, run, sample=True, seed=seed).problems
        if problems:
            assert f"1 byte differs, the first in element {element}" in problems[0]
        flip(out, begin + 4 * element)
        return bool(problems)

    assert all(is_seen(element) for element in (0, ranges[3][0], sum(ranges[3]) - 1, count - 1))
    assert not is_seen(sum(ranges[0]))
    assert any(is_seen(sum(ranges[0]), seed) for seed in "abcdefghijklmnopqrstuvwxyz")


def test_non_finite_checkpoints_are_an_error(tmp_path: Path, cli: Cli):
    """NaN that was let through once is, the same again; a manifest that does not say so makes it an error."""
    write_torch_run(tmp_path / "run", [1, 2])
    saved = torch.load(tmp_path / "run/step-2.pt")
    saved["model"]["layer.bias"][1] = float("nan")
    torch.save(saved, tmp_path / "run/step-2.pt")
    done = cli("average", "run", "--half-life", "2ba", "-o", "out.safetensors", "-q", "--allow-non-finite")
    assert done.code == 0, done
    out = tmp_path / "out.safetensors"
    assert against(out, tmp_path / "run").problems == ()
    vouch(out, lambda manifest: manifest["recipe"].update(allow_non_finite=False))
    with pytest.raises(NonFiniteError, match=r"step-2\.pt: 'layer\.bias' is not finite at element 1"):
        against(out, tmp_path / "run")
