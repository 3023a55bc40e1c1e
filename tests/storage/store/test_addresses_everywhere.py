"""An address stands wherever a path does: each option that takes one, each form of output, with equal bytes."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
from safetensors.torch import save_file

from ema_cli.storage.names import StorePath
from tests import signing_stand_in
from tests.conftest import Cli, write_hf_run
from tests.formats.adapters.adapters import adapter_tensors, base_tensors, write_adapter
from tests.storage.staging.test_in_store import local, present
from tests.storage.stores import put, put_folder

_numbers = count()
LAW = ("--half-life", "500ba")


@pytest.fixture
def bucket(tmp_path: Path) -> StorePath:
    """Return an address in a store in memory, with a run in `hf`; the same is in `tmp_path`."""
    write_hf_run(tmp_path / "hf", [500, 1000, 1500])
    address = StorePath(f"memory://everywhere-{next(_numbers)}/x")
    put_folder(address / "hf", local(tmp_path / "hf"))
    return address


@pytest.mark.parametrize(
    ("options", "output"),
    [
        (LAW, "out"),
        (LAW, "out.safetensors"),
        (LAW, "out.pt"),
        (LAW, "dcp:out"),
        ((*LAW, "--max-shard-size", "40B"), "out"),
        ((*LAW, "--half-life", "200ba"), "out"),
        ((*LAW, "--half-life", "200ba"), "out/ema-{half_life}.safetensors"),
        ((*LAW, "--series"), "out"),
        ((*LAW, "--copy", "norm.*"), "out"),
        ((*LAW, "--dtype", "bfloat16"), "out"),
        ((*LAW, "--extrapolate", "0.5"), "out"),
        ((*LAW, "--checksum"), "out"),
        ((*LAW, "--no-manifest"), "out"),
        (("--profile", "bema", "--base", "{}/hf/checkpoint-500"), "out"),
        (("--coefficients", "{}/coefficients.csv"), "out"),
        ((*LAW, "--expect-keys", "{}/keys.txt"), "out"),
    ],
    ids=" ".join,
)
def test_each_form_of_output_is_the_same_there(
    bucket: StorePath, tmp_path: Path, cli: Cli, options: tuple[str, ...], output: str
):
    """What is read beside the run may be in the store, too; what has a manifest verifies there."""
    names = ("layer.weight", "layer.bias", "norm.num_batches_tracked")
    for name, text in (
        ("coefficients.csv", "checkpoint-500,0.5\ncheckpoint-1000,0.25\ncheckpoint-1500,0.25\n"),
        ("keys.txt", "\n".join(names)),
    ):
        (tmp_path / name).write_text(text)
        put(bucket / name, text.encode())
    form, _, name = output.rpartition(":")
    form = f"{form}:" if form else ""
    (tmp_path / "o").mkdir()
    for place in (tmp_path, bucket):
        given = [option.format(place) for option in options]
        done = cli("average", f"{place}/hf", *given, "-o", f"{form}{place}/o/{name}", "-q")
        assert done.code == 0, done
    there = present(bucket / "o")
    assert there == local(tmp_path / "o")
    if "--no-manifest" not in options:
        published = bucket / "o" / name.partition("/")[0]
        assert cli("verify", published, "--against", bucket / "hf").code == 0


def test_a_whole_bucket_is_a_checkpoint_or_holds_a_run(tmp_path: Path, cli: Cli):
    """Around it there is no folder, which ended inspect and average with a traceback."""
    write_hf_run(tmp_path / "hf", [500, 1000])
    holds_one, holds_run = (StorePath(f"memory://everywhere-{next(_numbers)}") for _ in range(2))
    put_folder(holds_one, local(tmp_path / "hf" / "checkpoint-500"))
    put_folder(holds_run, local(tmp_path / "hf"))
    for bucket, law, line in ((holds_one, ("--last", "1"), "3 tensors"), (holds_run, LAW, "2 checkpoints")):
        done = cli("inspect", bucket)
        assert (done.code, line in done.out) == (0, True), done
        name = bucket.bucket
        assert cli("average", bucket, *law, "-o", name).code == 0
        assert cli("verify", name, "--against", bucket).code == 0
    done = cli("average", holds_run, *LAW, "--from", "stored")
    assert (done.code, "no stored average in this folder" in done.err) == (3, True), done


def test_a_recipe_is_read_from_a_store(bucket: StorePath, tmp_path: Path, cli: Cli):
    """A manifest there makes the same bytes again, elsewhere."""
    assert cli("average", bucket / "hf", *LAW, "-o", bucket / "one").code == 0
    manifest = bucket / "one" / "ema-manifest.json"
    assert cli("average", bucket / "hf", "--recipe", manifest, "-o", bucket / "two").code == 0
    assert present(bucket / "two") == present(bucket / "one")


def test_adapters_are_merged_into_a_model_in_a_store(bucket: StorePath, tmp_path: Path, cli: Cli):
    """And so are they when they are verified."""
    base = tmp_path / "base"
    base.mkdir()
    save_file(base_tensors(), base / "model.safetensors", {"format": "pt"})
    (base / "config.json").write_text("{}")
    for step in (10, 20):
        write_adapter(tmp_path / "lora" / f"checkpoint-{step}", adapter_tensors(step))
    for name in ("base", "lora"):
        put_folder(bucket / name, local(tmp_path / name))
    law, more = ("--profile", "uniform"), ("--merge-into", bucket / "base")
    done = cli("average", bucket / "lora", *law, *more, "-o", bucket / "merged")
    assert done.code == 0, done
    assert cli("average", tmp_path / "lora", *law, "--merge-into", base, "-o", "merged").code == 0
    assert present(bucket / "merged") == local(tmp_path / "merged")
    assert cli("verify", bucket / "merged", "--against", bucket / "lora", *more).code == 0


def test_a_half_life_is_tuned_from_a_store_into_it(
    bucket: StorePath, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    """The evaluation gets local paths, what it prints is kept in the working folder, and the best one is published."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "size.sh").write_text(
        'test -f "$1/model.safetensors" && case "$1" in *500ba*) echo 1;; *) echo 2;; esac'
    )
    tuned = ("tune", bucket / "hf", *LAW, "--half-life", "200ba", "--eval", "sh size.sh {path}", "-o", bucket / "best")
    done = cli(*tuned)
    assert (done.code, done.out) == (0, f"{bucket}/best\n"), done
    assert "best: 500ba" in done.err
    assert (tmp_path / "best.tune" / "500ba.out").read_text().strip() == "1"
    assert cli("verify", bucket / "best", "--against", bucket / "hf").code == 0
    assert cli(*tuned, "--force").code == 0
    assert not [path for path in present(bucket) if "claim" in path]


def test_a_release_in_a_store_is_signed_and_its_signature_checked(
    bucket: StorePath, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    """A folder, a file, several; a signature by another key is none. Keys are not taken from stores."""
    signing_stand_in.install(monkeypatch)
    signing_stand_in.write_keys(tmp_path, "mine", "theirs")
    for name, laws in (("out", LAW), ("out.safetensors", LAW), ("several", (*LAW, "--half-life", "200ba"))):
        signed = cli("average", bucket / "hf", *laws, "-o", bucket / name, "--sign", tmp_path / "mine.pem")
        assert signed.code == 0, signed
        whole = ("verify", bucket / name, "--against", bucket / "hf", "--signed-by")
        assert cli(*whole, tmp_path / "mine.pub").code == 0
        other = cli(*whole, tmp_path / "theirs.pub")
        assert (other.code, "was not made with" in other.err) == (6, True)
    put(bucket / "mine.pub", (tmp_path / "mine.pub").read_bytes())
    for arguments in (
        ("verify", bucket / "out", "--signed-by", bucket / "mine.pub"),
        ("average", bucket / "hf", *LAW, "-o", bucket / "other", "--sign", bucket / "mine.pub"),
    ):
        refused = cli(*arguments)
        assert (refused.code, "is in a store, and keys are read from this machine alone" in refused.err) == (2, True)


def test_a_page_about_a_release_goes_where_it_is_wanted(bucket: StorePath, tmp_path: Path, cli: Cli):
    """Into the store, or beside the user."""
    assert cli("average", bucket / "hf", *LAW, "-o", bucket / "out").code == 0
    assert cli("report", bucket / "out", "--against", bucket / "hf", "-o", bucket / "out.html").code == 0
    assert cli("report", bucket / "out", "--against", bucket / "hf", "-o", tmp_path / "out.html").code == 0
    assert present(bucket)["out.html"] == (tmp_path / "out.html").read_bytes()


def test_a_summary_of_what_lies_in_a_store_is_appended_to_a_file(bucket: StorePath, tmp_path: Path, cli: Cli):
    """Whether that is read, written, or both."""
    summary = tmp_path / "summary.md"
    for source, target in (
        (tmp_path / "hf", bucket / "a"),
        (bucket / "hf", tmp_path / "b"),
        (bucket / "hf", bucket / "c"),
    ):
        done = cli("average", source, *LAW, "-o", target, "--summary", summary)
        assert done.code == 0, done
    assert summary.read_text().count("## ") == 3


def test_what_is_appended_to_is_local(bucket: StorePath, cli: Cli):
    """A summary is added to a file, which a store cannot; nothing is averaged before that is said."""
    refused = cli("average", bucket / "hf", *LAW, "-o", bucket / "out", "--summary", bucket / "summary.md")
    assert refused.code == 2
    assert f"{bucket}/summary.md: is in a store, and this works with local files only" in refused.err
    assert not [path for path in present(bucket) if path.startswith("out")]


def test_a_dry_run_into_a_store_tells_no_room_on_a_disk_that_it_does_not_need(
    bucket: StorePath, tmp_path: Path, cli: Cli
):
    """The tensors are sent as they are made; on a disk it is told."""
    dry = ("average", bucket / "hf", *LAW, "--dry-run", "-o")
    done = cli(*dry, bucket / "out")
    assert done.err.endswith("of memory; the tensors go to the store as they are made, and on no disk\n"), done
    assert cli(*dry, bucket / "out", "--json").json["would_write"]["bytes_free"] is None
    assert "are free on the disk" in cli(*dry, tmp_path / "out").err
    assert cli(*dry, tmp_path / "out", "--json").json["would_write"]["bytes_free"] > 0
