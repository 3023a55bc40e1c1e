"""Models in several files: index and shards are one set of tensors, or an error with both names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ema_cli.errors import CheckpointError, EmaError, IncompleteCheckpoint, RunError
from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.shards import is_plain_name
from tests.formats.reading import read_all, stored_bytes

BASES = {"safetensors": "model", "bin": "pytorch_model"}


def shards(suffix: str) -> tuple[str, str]:
    """Return the names of two shards."""
    base = BASES[suffix]
    return f"{base}-00001-of-00002.{suffix}", f"{base}-00002-of-00002.{suffix}"


def index_name(suffix: str) -> str:
    """Return the name of the index."""
    return f"{BASES[suffix]}.{suffix}.index.json"


def write_part(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write one shard."""
    if path.suffix == ".safetensors":
        save_file(tensors, path, metadata={"format": "pt"})
    else:
        torch.save(tensors, path)


def write_shards(folder: Path, suffix: str = "safetensors", **weight_map: Any) -> Path:
    """Write 'a' and 'b' into a shard each, and an index that says so, with changes."""
    folder.mkdir(exist_ok=True)
    first, second = shards(suffix)
    for number, (name, shard) in enumerate((("a", first), ("b", second))):
        write_part(folder / shard, {name: torch.full((3,), number + 1.0)})
    index = {"metadata": {"total_size": 24}, "weight_map": {"a": first, "b": second, **weight_map}}
    (folder / index_name(suffix)).write_text(json.dumps(index))
    return folder


def refusal(path: Path) -> EmaError:
    """Return the error that opening the folder gives."""
    with pytest.raises(EmaError) as caught:
        open_checkpoint(path)
    return caught.value


@pytest.fixture(params=["safetensors", "bin"])
def suffix(request: pytest.FixtureRequest) -> str:
    """Each kind of shards."""
    found: str = request.param
    return found


def test_shards_are_one_model(suffix: str, tmp_path: Path) -> None:
    """Shards and index read as one set of tensors, under the folder's name; each tensor knows its file."""
    checkpoint = open_checkpoint(write_shards(tmp_path / "checkpoint-5", suffix))
    assert read_all(checkpoint.tensors) == {
        "a": stored_bytes(torch.full((3,), 1.0)),
        "b": stored_bytes(torch.full((3,), 2.0)),
    }
    assert (checkpoint.name, checkpoint.trainer) == ("checkpoint-5", None)
    assert sorted(file.path.name for file in checkpoint.files) == sorted([*shards(suffix), index_name(suffix)])
    assert tuple(checkpoint.tensors.shard(name) for name in "ab") == shards(suffix)


def test_a_missing_shard_is_incomplete(suffix: str, tmp_path: Path) -> None:
    """A shard that the index names and the folder lacks: its writer is not done."""
    folder = write_shards(tmp_path / "m", suffix)
    (folder / shards(suffix)[1]).unlink()
    error = refusal(folder)
    assert type(error) is IncompleteCheckpoint
    assert str(error) == f"{folder}: shard '{shards(suffix)[1]}' is missing"


def test_a_missing_index_is_incomplete(suffix: str, tmp_path: Path) -> None:
    """Shards without the index, which is written last: its writer is not done."""
    folder = write_shards(tmp_path / "m", suffix)
    (folder / index_name(suffix)).unlink()
    error = refusal(folder)
    assert type(error) is IncompleteCheckpoint
    assert str(error) == f"{folder}: holds shards, but no {index_name(suffix)}"


def test_a_shard_that_is_cut_short_is_incomplete(suffix: str, tmp_path: Path) -> None:
    """A shard without its end names itself."""
    folder = write_shards(tmp_path / "m", suffix)
    whole = (folder / shards(suffix)[1]).read_bytes()
    (folder / shards(suffix)[1]).write_bytes(whole[: -1 if suffix == "safetensors" else -30])
    error = refusal(folder)
    assert type(error) is IncompleteCheckpoint
    assert f"{shards(suffix)[1]}: cut short" in str(error)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shard",
    ["../x.safetensors", "/etc/passwd", "sub/x.safetensors", ".hidden", "..", ".", "a/", "nul\0", "", 3, None, ["a"]],
)
def test_a_shard_outside_the_folder_is_refused(shard: Any, suffix: str, tmp_path: Path) -> None:
    """Only a plain file name in the index is followed; nothing leads out of the folder."""
    save_file({"b": torch.ones(1)}, tmp_path / "x.safetensors")
    error = refusal(write_shards(tmp_path / "m", suffix, b=shard))
    assert type(error) is CheckpointError
    assert str(error).startswith(str(tmp_path / "m"))
    assert not (isinstance(shard, str) and is_plain_name(shard))


@pytest.mark.parametrize("shard", ["n" * 300, "\ud800"])
def test_a_shard_name_that_no_file_can_have_is_an_error(shard: str, tmp_path: Path) -> None:
    """A name too long for the file system, or not text, is an error that names the folder; not a crash."""
    error = refusal(write_shards(tmp_path / "m", b=shard))
    assert isinstance(error, CheckpointError)
    assert str(tmp_path / "m") in str(error)
    assert str(error).isprintable()


@pytest.mark.parametrize(
    ("name", "shard", "message"),
    [
        ("c", 0, "-00001-of-00002.{}: 'c' is in the index only"),
        ("b", 0, "'b' is in the index only"),
        ("a", 1, "-00002-of-00002.{}: 'a' is in the index only"),
    ],
)
def test_index_and_shards_must_agree(name: str, shard: int, message: str, suffix: str, tmp_path: Path) -> None:
    """A tensor that the index puts into a shard that does not hold it is an error with both names."""
    error = refusal(write_shards(tmp_path / "m", suffix, **{name: shards(suffix)[shard]}))
    assert message.format(suffix) in str(error)
    assert error.hint == "index and shards are of different saves"


def test_a_tensor_the_index_does_not_know_is_an_error(suffix: str, tmp_path: Path) -> None:
    """A shard may not hold more than the index says; not even another shard's tensor."""
    folder = write_shards(tmp_path / "m", suffix)
    write_part(folder / shards(suffix)[1], {"b": torch.ones(3), "a": torch.ones(3)})
    assert f"{shards(suffix)[1]}: 'a' is in the shard only" in str(refusal(folder))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "has no 'weight_map'"),
        ("[]", "has no 'weight_map'"),
        ('{"weight_map": {}}', "has no 'weight_map'"),
        ('{"weight_map": ["a"]}', "has no 'weight_map'"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "'a' stands twice"),
        ('{"weight_map"', "not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_an_index_that_is_none_is_refused(text: str, message: str, suffix: str, tmp_path: Path) -> None:
    """A damaged index is an error with its path and the reason."""
    folder = write_shards(tmp_path / "m", suffix)
    (folder / index_name(suffix)).write_text(text)
    error = refusal(folder)
    assert isinstance(error, CheckpointError)
    assert str(error).startswith(f"{folder / index_name(suffix)}: ")
    assert message in str(error)


@pytest.mark.parametrize("length", [0, 1, 10, 80])
def test_an_index_that_is_cut_short_is_incomplete(length: int, suffix: str, tmp_path: Path) -> None:
    """An index whose end is missing is still being written: a search passes it over."""
    folder = write_shards(tmp_path / "m", suffix)
    path = folder / index_name(suffix)
    path.write_bytes(path.read_bytes()[:length])
    assert type(refusal(folder)) is IncompleteCheckpoint


def test_links_are_followed(suffix: str, tmp_path: Path) -> None:
    """The hub's cache has links in place of shards, to files named by their contents: they read alike."""
    folder = write_shards(tmp_path / "m", suffix)
    for number, shard in enumerate(shards(suffix)):
        (folder / shard).rename(tmp_path / f"{number}abc")
        (folder / shard).symlink_to(tmp_path / f"{number}abc")
    checkpoint = open_checkpoint(folder)
    assert read_all(checkpoint.tensors)["b"] == stored_bytes(torch.full((3,), 2.0))
    assert tuple(checkpoint.tensors.shard(name) for name in "ab") == shards(suffix)


def test_places_tell_shards_apart(suffix: str, tmp_path: Path) -> None:
    """Two tensors at the same byte of two shards do not share their bytes; ties within a shard do."""
    folder = write_shards(tmp_path / "m", suffix)
    weights = open_checkpoint(folder).tensors
    assert weights.place("a") != weights.place("b")
    if suffix == "bin":
        tied = torch.ones(3)
        write_part(folder / shards(suffix)[1], {"b": tied, "c": tied})
        index = {"weight_map": {"a": shards(suffix)[0], "b": shards(suffix)[1], "c": shards(suffix)[1]}}
        (folder / index_name(suffix)).write_text(json.dumps(index))
        weights = open_checkpoint(folder).tensors
        assert weights.place("b") == weights.place("c")


def test_tables_are_shared_where_they_are_equal(suffix: str, tmp_path: Path) -> None:
    """A second checkpoint of the model takes the first one's tables, and reads its own bytes."""
    one, two = (open_checkpoint(write_shards(tmp_path / name, suffix)).tensors for name in "mn")
    two.share(one)
    assert two.specs is one.specs
    write_part(tmp_path / "n" / shards(suffix)[1], {"b": torch.full((3,), 7.0)})
    three = open_checkpoint(tmp_path / "n").tensors
    three.share(one)
    assert read_all(three)["b"] == stored_bytes(torch.full((3,), 7.0))


def test_one_pickled_shard_nests_its_weights(tmp_path: Path) -> None:
    """A pickled shard is read as any file of torch.save: what is no tensor in it is left out."""
    folder = write_shards(tmp_path / "m", "bin")
    torch.save({"b": torch.full((3,), 2.0), "note": "text"}, folder / shards("bin")[1])
    assert list(open_checkpoint(folder).tensors.specs) == ["a", "b"]


def test_averages_are_seen_in_any_shard(suffix: str, tmp_path: Path) -> None:
    """`n_averaged` says averages in whichever shard it lies, not in the first alone; asked for, they are taken."""
    folder = write_shards(tmp_path / "m", suffix, n_averaged=shards(suffix)[1])
    write_part(folder / shards(suffix)[1], {"b": torch.ones(3), "n_averaged": torch.tensor(3)})
    assert "n_averaged" in (open_checkpoint(folder).averaged or "")
    assert open_checkpoint(folder, ReadOptions(weights="ema")).averaged is None
    with pytest.raises(RunError):
        open_checkpoint(folder, ReadOptions(weights="raw"))
