"""Models whose pieces ranks saved in safetensors: put together by their offsets, or one clear error."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ema_cli.errors import CheckpointError, IncompleteCheckpoint
from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import ReadOptions
from tests.conftest import Cli
from tests.formats.pieces.make import OWN, halves, load_pieces, write_pieces, write_shard
from tests.formats.reading import read_all, stored_bytes

ROWS = {"w": torch.arange(12.0).reshape(4, 3)}


def rank_shard(folder: Path, name: str, tensors: dict[str, torch.Tensor], offsets: Sequence[int] = (0, 0)) -> None:
    """Write a file of pieces that all begin at `offsets`."""
    write_shard(folder / name, {tensor: (value, offsets) for tensor, value in tensors.items()})


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_pieces_are_put_together_as_torch_does(ranks: int, tmp_path: Path) -> None:
    """Rows, columns, the middle of three dimensions and both sides at once, cut unevenly, by torch's own reader."""
    torch.manual_seed(1)
    rows, columns = torch.randn(7, 3), torch.randn(4, 9).bfloat16()
    middle, both = torch.randn(2, 5, 4), torch.randn(5, 7)
    four = [((0, 0), (2, 3)), ((0, 3), (2, 4)), ((2, 0), (3, 3)), ((2, 3), (3, 4))]
    folder = write_pieces(
        tmp_path / "step-3",
        {
            "rows": (rows, halves(rows, 0, ranks)),
            "columns": (columns, halves(columns, 1, ranks)),
            "middle": (middle, halves(middle, 1, ranks)),
            "both": (both, four),
            "scalar": (torch.tensor(3), [((), ())]),
            "nothing": (torch.zeros(0, 2), [((0, 0), (0, 2))]),
        },
    )
    checkpoint = open_checkpoint(folder)
    expected = load_pieces(folder)
    assert torch.equal(expected["both"], both)
    assert read_all(checkpoint.tensors) == {name: stored_bytes(tensor) for name, tensor in expected.items()}
    assert {name: spec.shape for name, spec in checkpoint.tensors.specs.items()} == {
        name: tuple(tensor.shape) for name, tensor in expected.items()
    }
    assert any("put together of the files of" in note for note in checkpoint.notes)


def test_shards_of_ranks_that_hold_whole_tensors_are_one_model(tmp_path: Path) -> None:
    """Each rank writes its own files, without an index: tensors that are not cut are each in one of them."""
    other = {"v": torch.ones(2, 2), "u": torch.zeros(1, 1)}
    rank_shard(tmp_path / "step-3", OWN.format(1, 1, 2), ROWS)
    rank_shard(tmp_path / "step-3", OWN.format(1, 2, 2), {"u": other["u"]})
    rank_shard(tmp_path / "step-3", OWN.format(2, 2, 2), {"v": other["v"]})
    checkpoint = open_checkpoint(tmp_path / "step-3")
    assert read_all(checkpoint.tensors) == {name: stored_bytes(tensor) for name, tensor in {**ROWS, **other}.items()}
    assert {checkpoint.tensors.shard(name) for name in ("u", "v")} == {"model-00002-of-00002.safetensors"}
    assert len(checkpoint.files) == 3
    (tmp_path / "step-3" / OWN.format(1, 1, 2)).unlink()
    with pytest.raises(IncompleteCheckpoint, match="holds no shard 1 of 2"):
        open_checkpoint(tmp_path / "step-3")


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_rank_that_lacks_its_file_is_named_where_one_after_it_has_one(rank: int, tmp_path: Path) -> None:
    """What it held is missing; of the last rank nothing shows that it was there, and the tensor is smaller."""
    folder = write_pieces(tmp_path / "step-3", {"w": (ROWS["w"], halves(ROWS["w"], 0, 4))})
    (folder / OWN.format(rank, 1, 1)).unlink()
    with pytest.raises(IncompleteCheckpoint, match=rf"hold 9 of its 12 elements; no file of rank {rank} is there"):
        open_checkpoint(folder)


def test_a_run_with_one_checkpoint_that_lacks_the_last_rank_is_refused(cli: Cli, tmp_path: Path) -> None:
    """Its tensors are smaller than those of the others."""
    for step in (1, 2, 3):
        write_pieces(tmp_path / f"step-{step}", {"w": (ROWS["w"] * step, halves(ROWS["w"], 0))})
    (tmp_path / "step-2" / OWN.format(2, 1, 1)).unlink()
    done = cli("average", tmp_path, "--half-life", "1ba", "-o", tmp_path / "out.safetensors")
    assert done.code == 4
    assert "[2, 3]" in done.err


def test_files_with_equal_headers_are_read_by_the_tables_of_those_before(tmp_path: Path) -> None:
    """Each checkpoint has its own bytes all the same; and one that is cut otherwise has its own tables."""
    options = ReadOptions()
    opened = []
    for step, ranks in ((1, 2), (2, 2), (3, 4)):
        whole = ROWS["w"] * step
        folder = write_pieces(tmp_path / f"step-{step}", {"w": (whole, halves(whole, 0, ranks))})
        opened.append(open_checkpoint(folder, options))
        assert read_all(opened[-1].tensors) == {"w": stored_bytes(whole)}
        assert [file.path.parent for file in opened[-1].files] == [folder] * ranks
    assert opened[0].tensors.specs is opened[1].tensors.specs
    assert read_all(opened[0].tensors) == {"w": stored_bytes(ROWS["w"])}


WRONG = {
    "at one place": ([(2, 3), (2, 3)], [(0, 0), (0, 0)], "do not cover it exactly once"),
    "over each other": ([(3, 3), (2, 3), (1, 3)], [(0, 0), (2, 0), (3, 0)], "do not cover it exactly once"),
    "overlap and hole": ([(2, 2), (2, 2)], [(0, 0), (1, 0)], "do not cover it exactly once"),
    "a hole": ([(1, 3), (2, 3)], [(0, 0), (2, 0)], "hold 9 of its 12 elements"),
    "a corner": ([(2, 3), (1, 1)], [(0, 0), (2, 0)], "hold 7 of its 9 elements"),
    "far away": ([(2, 3), (2, 3)], [(0, 0), (1 << 40, 0)], "hold 12 of its"),
    "another number of dimensions": ([(2, 3), (2,)], [(0, 0), (2,)], "and that in"),
}


@pytest.mark.parametrize("label", WRONG)
def test_pieces_that_do_not_cover_a_tensor_are_refused(label: str, tmp_path: Path) -> None:
    """Holes, overlaps and other shapes are one error that names the tensor."""
    shapes, places, says = WRONG[label]
    for rank, (shape, offsets) in enumerate(zip(shapes, places, strict=True), 1):
        rank_shard(tmp_path, OWN.format(rank, 1, 1), {"w": torch.ones(shape)}, offsets)
    with pytest.raises(CheckpointError, match=says) as caught:
        open_checkpoint(tmp_path)
    assert "'w'" in str(caught.value)


def test_pieces_of_two_types_are_refused(tmp_path: Path) -> None:
    """One rank's half is bfloat16."""
    rank_shard(tmp_path, OWN.format(1, 1, 1), ROWS)
    rank_shard(tmp_path, OWN.format(2, 1, 1), {"w": ROWS["w"].bfloat16()}, (4, 0))
    with pytest.raises(CheckpointError, match=r"its piece of 'w' is BF16 \[4, 3\], and that in shard-00001.* is F32"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("offsets", [(0, 0), (4, 0)])
def test_a_file_of_one_rank_is_no_model(offsets: tuple[int, int], tmp_path: Path) -> None:
    """The first rank's pieces begin where whole tensors do; its name shows that there are others. The hint helps."""
    rank_shard(tmp_path / "step 3", OWN.format(1, 1, 1), ROWS)
    rank_shard(tmp_path / "step 3", OWN.format(2, 1, 1), ROWS, (4, 0))
    rank = 2 if any(offsets) else 1
    with pytest.raises(CheckpointError, match="the files of other ranks hold the rest") as caught:
        open_checkpoint(tmp_path / "step 3" / OWN.format(rank, 1, 1))
    folder = Path(str(caught.value.hint).removeprefix("name its folder, "))
    assert open_checkpoint(folder).tensors.specs["w"].shape == (8, 3)


def test_pieces_under_other_names_are_read_under_those_of_torch(tmp_path: Path) -> None:
    """Whoever renamed them is told what they must be called."""
    rank_shard(tmp_path, "b.safetensors", ROWS, (4, 0))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "b.safetensors")
    assert "called shard-00001-model-00001-of-00001.safetensors" in str(caught.value.hint)


@pytest.mark.parametrize(
    "info",
    ["", "{", "[]", "3", "{}", '{"w": {}}', *(f'{{"w": {{"saved_offsets": {at}}}}}' for at in
     ("3", "[0]", "[0, -1]", "[0, true]", "[0, 1.0]", "[0, 4611686018427387904]"))],
)  # fmt: skip
def test_offsets_that_cannot_be_read_are_an_error(info: str, tmp_path: Path) -> None:
    """What says nothing of where the pieces begin is refused, in a file alone as in one of several."""
    for name in ("model.safetensors", OWN.format(1, 1, 1)):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        save_file(ROWS, folder / name, metadata={"DCP_SHARDING_INFO": info})
        with pytest.raises(CheckpointError, match="its 'DCP_SHARDING_INFO'"):
            open_checkpoint(folder)


def test_consolidated_is_taken_before_the_shards_of_ranks(tmp_path: Path) -> None:
    """NeMo AutoModel writes what from_pretrained loads into consolidated/, beside the pieces; it is said."""
    model = write_pieces(tmp_path / "model", {"w": (ROWS["w"], halves(ROWS["w"], 0))})
    (model / "consolidated").mkdir()
    save_file(ROWS, model / "consolidated" / "model.safetensors")
    checkpoint = open_checkpoint(model)
    assert read_all(checkpoint.tensors) == {"w": stored_bytes(ROWS["w"])}
    assert checkpoint.path == model
    assert checkpoint.pretrained is not None
    assert checkpoint.pretrained.folder == model / "consolidated"
    assert any(note.startswith("taken from consolidated/") for note in checkpoint.notes)


def test_pieces_are_taken_where_what_was_put_together_is_not_whole(tmp_path: Path) -> None:
    """torch puts them together last: where it died, or still writes, the pieces are whole."""
    model = write_pieces(tmp_path / "model", {"w": (ROWS["w"], halves(ROWS["w"], 0))})
    (model / "consolidated").mkdir()
    save_file(ROWS, model / "consolidated" / "model-00001-of-00002.safetensors")
    checkpoint = open_checkpoint(model)
    assert read_all(checkpoint.tensors) == {"w": stored_bytes(ROWS["w"])}
    assert any("put together of the files of 2 ranks" in note for note in checkpoint.notes)


@pytest.mark.parametrize("place", ["sharded", "consolidated"])
@pytest.mark.parametrize("scale", [2.5, 0.0])
def test_numbers_that_torch_loses_where_it_puts_pieces_together(place: str, scale: float, tmp_path: Path) -> None:
    """A tensor without dimensions is 0 in what torch puts together: its number comes from the pieces, with a word."""
    saved = {"scale": torch.tensor(scale), "w": torch.ones(2, 2)}
    pieces = tmp_path / "step-10" / "sharded" if place == "sharded" else tmp_path / "step-10"
    write_shard(pieces / OWN.format(1, 1, 1), {name: (tensor, [0] * tensor.dim()) for name, tensor in saved.items()})
    whole = tmp_path / "step-10" / "consolidated" if place == "consolidated" else tmp_path / "step-10"
    whole.mkdir(exist_ok=True)
    save_file({**saved, "scale": torch.tensor(0.0)}, whole / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path / "step-10")
    assert read_all(checkpoint.tensors) == {name: stored_bytes(tensor) for name, tensor in saved.items()}
    said = [warning for warning in checkpoint.warnings if warning.endswith("taken from the files of ranks: scale")]
    assert len(said) == (scale != 0)
    assert (checkpoint.name, checkpoint.path) == ("step-10", tmp_path / "step-10")
    assert checkpoint.pretrained is not None
    assert checkpoint.pretrained.folder == whole


def put_together(folder: Path, saved: dict[str, torch.Tensor], **lost: torch.Tensor) -> Path:
    """Write what two ranks saved, and beside it what was put together of it, in which some numbers are others."""
    boxes = {name: halves(tensor, 0) if tensor.dim() else [((), ())] for name, tensor in saved.items()}
    write_pieces(folder, {name: (tensor, boxes[name]) for name, tensor in saved.items()})
    (folder / "consolidated").mkdir()
    save_file({**saved, **lost}, folder / "consolidated" / "model.safetensors")
    return folder


def test_numbers_alone_are_taken_from_files_of_ranks(tmp_path: Path) -> None:
    """Where pieces of other tensors are gone, or are others, these are as they were put together."""
    saved = {"scale": torch.tensor(2.5), "t": torch.tensor(-0.0), "w": torch.arange(8.0).reshape(4, 2)}
    zero, more = torch.tensor(0.0), {"w": saved["w"] + 1, "head": torch.ones(3)}
    folder = put_together(tmp_path, saved, scale=zero, t=zero.clone(), **more)
    (folder / OWN.format(2, 1, 1)).unlink()
    checkpoint = open_checkpoint(folder)
    expected = {**saved, **more}
    assert read_all(checkpoint.tensors) == {name: stored_bytes(tensor) for name, tensor in expected.items()}
    assert {checkpoint.tensors.shard(name) for name in expected} == {"model.safetensors"}
    assert [file.path.name for file in checkpoint.files] == ["model.safetensors", OWN.format(1, 1, 1)]
    assert any(note.startswith("all else taken from consolidated/") for note in checkpoint.notes)


def test_a_zero_that_no_file_of_a_rank_has_is_told(tmp_path: Path) -> None:
    """What was a number in a file that is gone, or that a file has in another shape, is 0, with a warning."""
    folder = put_together(tmp_path, {"w": torch.ones(4), "t": torch.ones(2)}, t=torch.tensor(0), s=torch.tensor(0.0))
    checkpoint = open_checkpoint(folder)
    assert [warning.endswith("in no file of a rank that is here: s, t") for warning in checkpoint.warnings] == [True]
    assert read_all(checkpoint.tensors)["t"] == bytes(8)


@pytest.mark.parametrize("damage", ["cut", "header", "another"])
def test_a_number_that_files_of_ranks_do_not_agree_on(damage: str, tmp_path: Path) -> None:
    """Where a file that may hold it cannot be read, or two hold other numbers, nobody knows it: that is an error."""
    folder = put_together(tmp_path, {"s": torch.tensor(1.5), "w": torch.ones(4)}, s=torch.tensor(0.0))
    second = folder / OWN.format(2, 1, 1)
    if damage == "cut":
        second.write_bytes(second.read_bytes()[:-1])
    elif damage == "header":
        second.write_bytes(b"no header of safetensors")
    else:
        write_shard(second, {"s": (torch.tensor(2.5), ()), "w": (torch.ones(2), (2,))})
    with pytest.raises(CheckpointError, match=second.name) as caught:
        open_checkpoint(folder)
    assert caught.value.hint
    assert ("may hold 's', which is 0" in caught.value.fact) == (damage == "header")


def test_a_run_of_automodel_is_averaged(cli: Cli, tmp_path: Path) -> None:
    """All but the last checkpoint are pieces; the last is put together, too, with configuration and tokenizer."""
    run = tmp_path / "checkpoints"
    saved = {}
    for step in (19, 39, 59):
        folder = run / f"epoch_0_step_{step}"
        saved[step] = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
        model = write_pieces(folder / "model", {"w": (saved[step], halves(saved[step], 0))})
        (model / ".hf_metadata").mkdir()
        for name in ("config.json", "tokenizer.json", "fqn_to_file_index_mapping.json"):
            (model / ".hf_metadata" / name).write_text(json.dumps({"w": 1}))
        (folder / "config.yaml").write_text("a: 1")
        torch.save({"step": step}, folder / "step_scheduler.pt")
    (run / "LATEST").symlink_to("epoch_0_step_59")
    out = tmp_path / "out"
    done = cli("average", run, "--half-life", "20ba", "--update-interval", "20ba", "-o", out)
    assert done.code == 0, done
    expected = (saved[19].double() / 2 + saved[39].double() / 2) / 2 + saved[59].double() / 2
    assert torch.allclose(load_file(out / "model.safetensors")["w"].double(), expected, atol=1e-6)
    assert sorted(path.name for path in out.iterdir() if path.suffix == ".json") == [
        "config.json", "ema-manifest.json", "tokenizer.json"
    ]  # fmt: skip
    last = run / "epoch_0_step_59" / "model" / "consolidated"
    last.mkdir()
    save_file({"w": saved[59]}, last / "model.safetensors")
    (last / "config.json").write_text("{}")
    again = cli("average", run, "--half-life", "20ba", "--update-interval", "20ba", "-o", tmp_path / "again")
    assert again.code == 0, again
    assert torch.equal(
        load_file(tmp_path / "again" / "model.safetensors")["w"], load_file(out / "model.safetensors")["w"]
    )
