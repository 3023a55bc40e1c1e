"""`average --recipe MANIFEST`: the same bytes from the same inputs, or an error that names what is another."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ema_cli.release import replay
from tests.conftest import COMPOSER, make_tensors, write_hf_run, write_torch_run
from tests.inprocess import InProcess, write_stored_run

BIG = 300_000  # values: many more bytes than a fingerprint samples


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> InProcess:
    """The command line, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return InProcess(tmp_path, capsys)


def written(path: Path) -> dict[str, bytes]:
    """Return the bytes of all files of an average, by what they are called below or beside it."""
    files = path.rglob("*") if path.is_dir() else path.parent.glob(f"{path.name}*")
    return {
        file.relative_to(path if path.is_dir() else path.parent).as_posix(): file.read_bytes()
        for file in files
        if file.is_file()
    }


def manifest_of(path: Path) -> Path:
    """Return the manifest of an average."""
    return path / "ema-manifest.json" if path.is_dir() else path.with_name(f"{path.name}.manifest.json")


def average(run: InProcess, *arguments: object) -> Path:
    """Return what an average was written to."""
    code, out = run("average", *arguments)
    assert code == 0, run.err
    return run.folder / out.strip()


def assert_repeats(run: InProcess, first: Path, paths: Sequence[object], *options: object) -> None:
    """Check that an average is repeated to the byte, manifest and sums included, to a place of the same name."""
    (run.folder / "again").mkdir(exist_ok=True)
    target = run.folder / "again" / first.name
    second = average(run, *paths, "--recipe", manifest_of(first), "-o", target, *options)
    assert second == target
    assert written(second) == written(first)


OUTPUTS = ["out", "out.safetensors", "out.pt"]
LAWS = [
    ["--half-life", "700ba"],
    ["--half-life", "0.3ep", "--update-interval", "0.25ep"],
    ["--half-life", "infba", "--update-interval", "every"],
    ["--half-life", "0ba"],
    ["--smoothing", "0.7"],
    ["--smoothing", "0.7", "--update-interval", "1000ba"],
    ["--profile", "uniform"],
    ["--profile", "linear"],
    ["--profile", "1-sqrt"],
    ["--profile", "cosine", "--window", "10ba"],
    ["--profile", "inverse-sqrt"],
    ["--profile", "power", "--sigma-rel", "0.15"],
    ["--half-life", "700ba", "--bias-correction"],
    ["--half-life", "700ba", "--start", "1ep", "--stop", "2500ba"],
    ["--half-life", "700ba", "--last", "3"],
    ["--smoothing", "0.5", "--last", "2", "--bias-correction"],
]


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS, ids=" ".join)
def test_every_law_is_repeated(run: InProcess, law: Sequence[str]):
    """With all sums and without, to each kind of output in turn, though the training went on, and was moved, since."""
    write_hf_run(run.folder / "ckpts", [500, 1000, 1500, 2000, 3000], epoch_length=1000)
    output = OUTPUTS[LAWS.index(list(law)) % 3]
    flags = ["--checksum"] if LAWS.index(list(law)) % 2 else []
    first = average(run, "ckpts", *law, "-o", output, *flags)
    assert_repeats(run, first, ["ckpts"])
    write_hf_run(run.folder / "ckpts", [250, 1750, 4000], epoch_length=1000)
    (run.folder / "elsewhere").mkdir()
    (run.folder / "ckpts").rename(run.folder / "elsewhere/moved")
    shutil.rmtree(run.folder / "again")
    assert_repeats(run, first, ["elsewhere/moved"], "--threads", "3")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "output"),
    [
        (["--dtype", "bfloat16"], "out"),
        (["--dtype", "float16", "--copy", "*.bias", "--copy", "no*"], "out.pt"),
        (["--max-shard-size", "20B"], "out"),
        (["--max-shard-size", "1GiB", "--checksum"], "out"),
    ],
)
def test_options_of_the_output_are_repeated(run: InProcess, options: Sequence[str], output: str):
    """Types, patterns and the size of shards."""
    write_hf_run(run.folder / "ckpts", [500, 1000, 1500])
    first = average(run, "ckpts", "--half-life", "700ba", *options, "-o", output)
    assert_repeats(run, first, ["ckpts"])


def test_non_finite_values_are_let_through_again(run: InProcess):
    """What --allow-non-finite let pass passes again."""
    write_torch_run(run.folder / "files", [1, 2])
    tensors = {**make_tensors(3), "layer.bias": torch.full((4,), torch.nan)}
    torch.save({"model": tensors, "step": 3}, run.folder / "files/step-3.pt")
    first = average(run, "files", "--half-life", "1ba", "--allow-non-finite", "-o", "out.safetensors")
    assert_repeats(run, first, ["files"])


@pytest.mark.slow
def test_clocks_are_those_that_were_settled(run: InProcess):
    """Spacing, epoch lengths and epochs that counted from 0 give what they gave, whatever lies there now."""
    for step, name in enumerate(["a", "b", "c"], 1):
        write_torch_run(run.folder / "named", [step], f"model-{name}.pt")
        path = run.folder / "named" / f"model-{name}.pt"
        torch.save({"model": make_tensors(step)}, path)
        (run.folder / "epochs").mkdir(exist_ok=True)
        torch.save({"model": make_tensors(step), "epoch": step - 1}, run.folder / "epochs" / f"epoch{step - 1}.pt")
    firsts = [
        (average(run, "named", "--half-life", "100ba", "--spacing", "100ba", "-o", "s.pt"), "named"),
        (average(run, "epochs", "--half-life", "1ep", "-o", "e.pt"), "epochs"),
        (average(run, "epochs", "--half-life", "100ba", "--epoch-length", "90ba", "-o", "l.pt"), "epochs"),
    ]
    assert [each["clock"] for each in json.loads(manifest_of(firsts[1][0]).read_text())["inputs"]] == [
        "1ep",
        "2ep",
        "3ep",
    ]
    torch.save({"model": make_tensors(9)}, run.folder / "named/model-aa.pt")
    (run.folder / "epochs/epoch0.pt").rename(run.folder / "epochs/keep")
    (run.folder / "epochs/keep").rename(run.folder / "epochs/epoch0.pt")
    for first, folder in firsts:
        assert_repeats(run, first, [folder])


@pytest.mark.slow
def test_a_choice_of_weights_is_repeated(run: InProcess):
    """--key, --weights ema, and names that keep their prefix."""
    (run.folder / "files").mkdir()
    for step in (1, 2, 3):
        raw = {f"module.{name}": tensor for name, tensor in make_tensors(step).items()}
        ema = {name: tensor * 2 if tensor.is_floating_point() else tensor for name, tensor in raw.items()}
        content = {"net": {"weights": raw}, "state_dict_ema": ema, "state_dict": raw, "step": step}
        torch.save(content, run.folder / f"files/step-{step}.pt")
    for number, options in enumerate((["--key", "net.weights"], ["--weights", "ema"], ["--weights", "raw"])):
        for keep in ([], ["--keep-prefix"]):
            name = f"{number}{len(keep)}.safetensors"
            first = average(run, "files", "--half-life", "1ba", *options, *keep, "-o", name)
            assert_repeats(run, first, ["files"])


def test_named_checkpoints_are_repeated(run: InProcess):
    """From the folder that they lie in, or named again, also where one is the only one."""
    write_hf_run(run.folder / "ckpts", [500, 1000, 1500])
    named = [f"ckpts/checkpoint-{step}" for step in (1500, 500)]
    first = average(run, *named, "--half-life", "700ba", "-o", "out")
    assert_repeats(run, first, ["ckpts"])
    shutil.rmtree("again")
    assert_repeats(run, first, named)
    single = average(run, "ckpts/checkpoint-500", "--half-life", "700ba", "-o", "single")
    assert_repeats(run, single, ["ckpts"])
    shutil.rmtree("again")
    assert_repeats(run, single, ["ckpts/checkpoint-500"])


def test_twins_are_repeated(run: InProcess):
    """Of two with one clock the one that was taken, though the other is gone."""
    write_torch_run(run.folder / "files", [1, 2])
    shutil.copy(run.folder / "files/step-2.pt", run.folder / "files/last.pt")
    first = average(run, "files", "--half-life", "1ba", "-o", "out.pt")
    (run.folder / "files/last.pt").unlink()
    assert_repeats(run, first, ["files"])


@pytest.mark.slow
def test_stored_averages_are_repeated(run: InProcess):
    """The weights are those of the fit, though the training stored more since, which would give others."""
    write_stored_run(run.folder / "run/ema", steps=200)
    first = average(run, "run", "--from", "stored", "--half-life", "50ba", "-o", "out.safetensors", "--checksum")
    assert_repeats(run, first, ["run"])
    shutil.rmtree(run.folder / "run/ema")
    write_stored_run(run.folder / "run/ema", steps=300)
    other = average(run, "run", "--from", "stored", "--half-life", "50ba", "-o", "other.safetensors")
    assert load_file(other).keys() == load_file(first).keys()
    assert other.read_bytes() != first.read_bytes()
    shutil.rmtree(run.folder / "again")
    assert_repeats(run, first, ["run"])


@pytest.mark.slow
def test_one_of_several_is_repeated(run: InProcess):
    """Each has a manifest that says what it is alone, also where it reads less than the others did."""
    write_hf_run(run.folder / "ckpts", [500, 1000, 1500])
    laws = [part for law in ("0ba", "700ba", "infba") for part in ("--half-life", law)]
    folder = average(run, "ckpts", *laws, "--checksum", "-o", "all")
    for law in ("0ba", "700ba", "infba"):
        assert_repeats(run, folder / f"ema-{law}", ["ckpts"])


def test_only_the_inputs_are_opened(run: InProcess, big: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch):
    """All of a run may be many more; it is opened where clocks need it, and for what `verify` says of it."""

    def refuse(*_arguments: object) -> None:
        raise AssertionError

    monkeypatch.setattr(replay, "open_around", refuse)
    assert_repeats(run, big["none"], ["ckpts"])
    with pytest.raises(AssertionError):
        run("verify", big["none"], "--against", "ckpts")


@pytest.mark.slow
def test_where_it_goes_if_nobody_says(run: InProcess):
    """Under the name of its law, as what it was; an output that is there is not replaced."""
    write_hf_run(run.folder / "ckpts", [500, 1000])
    for output, name in (("a.pt", "ema-700ba.pt"), ("b.safetensors", "ema-700ba.safetensors"), ("c", "ema-700ba")):
        first = average(run, "ckpts", "--half-life", "700ba", "-o", output)
        assert average(run, "ckpts", "--recipe", manifest_of(first)) == run.folder / name
        assert run("average", "ckpts", "--recipe", manifest_of(first))[0] == 5


def write_big(folder: Path, steps: Sequence[int], change: Callable[[int, torch.Tensor], None] | None = None) -> None:
    """Write a run whose tensors are larger than what a fingerprint samples; `change` them before."""
    folder.mkdir(exist_ok=True)
    for step in steps:
        tensor = torch.full((BIG,), float(step))
        if change is not None:
            change(step, tensor)
        save_file({"weight": tensor}, folder / f"step-{step}.safetensors")


def fails(run: InProcess, first: Path, *paths: object) -> tuple[int, str]:
    """Return the exit code and message of a repetition; check that it leaves nothing."""
    code, told = run.json("average", *(paths or ["ckpts"]), "--recipe", manifest_of(first), "-o", "again.safetensors")
    assert not list(run.folder.glob("again*"))
    assert not list(run.folder.glob(".again*"))
    return code, told["error"]["message"]


@pytest.fixture
def big(run: InProcess) -> Mapping[str, Path]:
    """Two averages of one run, with the sums of all that was read and without."""
    write_big(run.folder / "ckpts", [10, 20, 30])
    law = ["--half-life", "10ba"]
    return {
        "sums": average(run, "ckpts", *law, "--checksum", "-o", "sums.safetensors"),
        "none": average(run, "ckpts", *law, "-o", "none.safetensors"),
    }


def test_an_input_is_missing(run: InProcess, big: Mapping[str, Path]):
    """It is named, with where it was looked for."""
    (run.folder / "ckpts/step-20.safetensors").unlink()
    assert fails(run, big["none"]) == (3, "ckpts: 'step-20.safetensors', which entered the average, is missing")
    assert fails(run, big["none"], "nowhere")[0] == 3


def test_an_input_is_damaged_or_of_another_form(run: InProcess, big: Mapping[str, Path]):
    """What cannot be read is an error that names it, as it is for any average."""
    path = run.folder / "ckpts/step-20.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    code, message = fails(run, big["none"])
    assert (code, "step-20.safetensors" in message) == (3, True)


@pytest.mark.parametrize("kind", ["sums", "none"])
def test_a_change_that_is_sampled_is_seen_before_anything_is_read(run: InProcess, big: Mapping[str, Path], kind: str):
    """Another checkpoint under the name of one: its fingerprint is another, and how many have is told."""
    write_big(run.folder / "ckpts", [20, 30], lambda step, tensor: tensor.add_(1))
    code, message = fails(run, big[kind])
    assert (code, message) == (
        3,
        "ckpts/step-20.safetensors: has changed since it was averaged: its fingerprint is another, and so have 1 more",
    )


def unsampled(step: int, tensor: torch.Tensor) -> None:
    """Change one value that no fingerprint looks at: between the first block, 1/32 in, and the second."""
    tensor[BIG // 16] += step == 20


def test_a_change_that_only_sums_see_names_the_input(run: InProcess, big: Mapping[str, Path]):
    """One value of 300,000: with --checksum it is told whose it is, and where."""
    write_big(run.folder / "ckpts", [20], unsampled)
    code, message = fails(run, big["sums"])
    assert code == 3
    assert message.startswith(
        "ckpts/step-20.safetensors: has changed since it was averaged: block 0 (of 16777216 bytes)"
    )


def test_a_clock_that_is_not_what_it_was_is_seen(run: InProcess):
    """A trainer's state that was changed, or a manifest that gives another clock, names the checkpoint and both."""
    write_hf_run(run.folder / "ckpts", [100, 200, 300])
    out = average(run, "ckpts", "--half-life", "100ba", "-o", "out")
    state = run.folder / "ckpts" / "checkpoint-200" / "trainer_state.json"
    state.write_text(state.read_text().replace("200", "220"))
    code, _ = run("average", "ckpts", "--recipe", manifest_of(out), "-o", "again")
    assert code == 3
    assert "checkpoint-200: its clock is 220ba, but was 200ba when it was averaged" in run.err


def test_a_change_that_nothing_sees_shows_in_the_average(run: InProcess, big: Mapping[str, Path]):
    """Without --checksum the average has other bytes, and is not published."""
    write_big(run.folder / "ckpts", [20], unsampled)
    code, message = fails(run, big["none"])
    assert code == 6
    assert "their average has other bytes than the manifest says" in message


def test_a_change_of_a_checkpoint_without_weight_is_none(run: InProcess):
    """What is not read need not be the same; but it must be there, as the weights tell of it."""
    write_big(run.folder / "ckpts", [10, 20, 30])
    first = average(run, "ckpts", "--half-life", "0ba", "--checksum", "-o", "out.safetensors")
    write_big(run.folder / "ckpts", [10], lambda step, tensor: tensor.add_(1))
    assert_repeats(run, first, ["ckpts"])


def changed(run: InProcess, first: Path, change: Callable[[Any], None]) -> Path:
    """Return an average beside which the manifest was changed."""
    manifest = json.loads(manifest_of(first).read_text())
    change(manifest)
    (run.folder / "changed.manifest.json").write_text(json.dumps(manifest))
    return run.folder / "changed"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda told: told["inputs"][0].update(weight=0.5), 4),
        (lambda told: told["inputs"][0].update(weight=10**400), 3),
        (lambda told: told["inputs"][0].update(clock="11ba"), 4),
        (lambda told: told["inputs"][0]["clocks"]["ba"].update(value="11"), 3),
        (lambda told: told["inputs"][0]["clocks"]["ba"].update(value="x"), 3),
        (lambda told: told["inputs"][0]["clocks"]["ba"].update(value="1/0"), 3),
        (lambda told: told["inputs"][0]["clocks"]["ba"].update(value="1e9999"), 3),
        (lambda told: told["inputs"][0].update(clocks={}), 3),
        (lambda told: told["inputs"][0].update(name="../ckpts/step-10.safetensors"), 3),
        (lambda told: told["inputs"][0].update(name="/etc/passwd"), 3),
        (lambda told: told["inputs"][0].update(name="a\0b"), 3),
        (lambda told: told["inputs"][0].update(name="a" * 300), 3),
        (lambda told: told["inputs"][0].update(fingerprint="0" * 64), 3),
        (lambda told: told["inputs"][0].update(fingerprint=None), 3),
        (lambda told: told["inputs"].pop(0), 4),
        (lambda told: told["inputs"].reverse(), 4),
        (lambda told: told["inputs"].append(told["inputs"][0]), 4),
        (lambda told: told["recipe"].update(half_life="11ba"), 4),
        (lambda told: told["recipe"].update(law="/../../11ba"), 4),
        (lambda told: told["recipe"].update(half_life="x"), 2),
        (lambda told: told["recipe"].update(half_life=None), 2),
        (lambda told: told["recipe"].update(smoothing=0.5), 2),
        (lambda told: told["recipe"].update(last=0), 3),
        (lambda told: told["outputs"][0].update(sha256="0" * 64), 6),
        (lambda told: told.update(schema_version=2), 3),
        (lambda told: told.pop("recipe"), 3),
    ],
)
def test_a_manifest_that_was_changed_is_refused(
    run: InProcess, big: Mapping[str, Path], change: Callable[[Any], None], code: int
):
    """Weights, clocks, names, sums and the law must fit together; nothing outside the folder is looked at."""
    assert fails(run, changed(run, big["none"], change))[0] == code


@pytest.mark.slow
def test_options_beside_it_are_refused(run: InProcess, big: Mapping[str, Path]):
    """What the manifest says, nobody else may; threads, memory and the place may be said."""
    manifest = manifest_of(big["none"])
    for options in (
        ["--half-life", "10ba"], ["--smoothing", "0.5"], ["--smoothing", "0"], ["--update-interval", "1ba"],
        ["--profile", "uniform"], ["--sigma-rel", "0.1"], ["--bias-correction"], ["--from", "raw"], ["--start", "1ba"],
        ["--stop", "1ba"], ["--last", "1"], ["--last", "0"], ["--epoch-length", "1ba"], ["--spacing", "1ba"],
        ["--key", "a"], ["--weights", "raw"], ["--component", "a"], ["--keep-prefix"], ["--copy", "a"],
        ["--dtype", "float32"], ["--max-shard-size", "1GB"], ["--allow-approximate"], ["--allow-non-finite"],
        ["--key", ""], ["--start", ""],
    ):  # fmt: skip
        code, told = run.json("average", "ckpts", "--recipe", manifest, "-o", "again.safetensors", *options)
        assert (code, told["error"]["message"]) == (2, f"{options[0]}: --recipe says it"), options
    code, told = run.json("average", "--recipe", manifest)
    assert (code, told["error"]["message"]) == (2, "which checkpoints?")
    allowed = ["--threads", "2", "--max-memory", "4GB", "--min-count", "3", "--quiet"]
    assert run("average", "ckpts", "--recipe", manifest, "-o", "again.safetensors", *allowed)[0] == 0


def test_what_is_no_manifest_is_named_with_the_manifest_of_it(run: InProcess):
    """An average in the place of its manifest, sums, a folder, a file in it, a folder of several: ready to copy."""
    write_hf_run(run.folder / "ckpts", [10, 20])
    law = ("ckpts", "--half-life", "10ba", "-q")
    for output in ("one.safetensors", "two.pt", "three"):
        assert run("average", *law, "-o", output)[0] == 0
    assert run("average", *law, "--half-life", "20ba", "-o", "sweep")[0] == 0
    assert run("average", *law, "-o", "bare.safetensors", "--no-manifest")[0] == 0
    Path("other.json").write_text("{}")
    os.mkfifo("fifo")
    average = "is an average of ema-cli's"
    none = "a manifest is what ema-cli average writes beside the weights, unless --no-manifest is given"
    for named, code, fact, hint in (
        ("one.safetensors", 2, average, "name its manifest: --recipe one.safetensors.manifest.json"),
        ("two.pt", 2, average, "name its manifest: --recipe two.pt.manifest.json"),
        ("two.pt.sha256", 3, "not valid JSON", "name its manifest: --recipe two.pt.manifest.json"),
        ("three", 2, "is a folder", "name its manifest: --recipe three/ema-manifest.json"),
        ("three/model.safetensors", 2, average, "name its manifest: --recipe three/ema-manifest.json"),
        (
            "sweep",
            2,
            "is a folder",
            "name the manifest of one of its averages: --recipe sweep/ema-10ba/ema-manifest.json",
        ),
        ("bare.safetensors", 2, average, none),
        ("other.json", 3, "is no manifest that this version of ema-cli reads", none),
        ("ckpts", 2, "is a folder", none),
        ("none.json", 2, "does not exist", none),
        ("fifo", 2, "is not a regular file", none),
    ):
        told_code, told = run.json("average", "ckpts", "--recipe", named, "-o", "again.safetensors")
        option = "--recipe: " if code == 2 else ""
        assert told_code == code, told
        assert told["error"]["message"].startswith(f"{option}{named}: {fact}"), told
        assert told["error"]["hint"].startswith(hint), told
    cut = Path("one.safetensors.manifest.json")
    cut.write_text(cut.read_text()[:-9])
    code, told = run.json("average", "ckpts", "--recipe", str(cut), "-o", "again.safetensors")
    assert (code, told["error"]["hint"]) == (3, "bring back the manifest as ema-cli wrote it")


def test_what_is_no_average_is_named_with_the_average_of_it(run: InProcess):
    """A manifest, sums, a signature in the place of a checkpoint; `report` takes them for the average, as `verify`."""
    write_hf_run(run.folder / "ckpts", [10, 20])
    for output, signature in (("one.safetensors", "one.safetensors.sig"), ("two", "two/model.sig")):
        assert run("average", "ckpts", "--half-life", "10ba", "-q", "-o", output)[0] == 0
        (run.folder / signature).write_text('{"mediaType": "one of a signature"}')
    for named, meant in (
        ("one.safetensors.manifest.json", "one.safetensors"),
        ("one.safetensors.sha256", "one.safetensors"),
        ("one.safetensors.sig", "one.safetensors"),
        ("two/ema-manifest.json", "two"),
        ("two/SHA256SUMS", "two"),
        ("two/model.sig", "two"),
    ):
        for command in (["inspect", named], ["compare", named, "two"], ["average", named, "--last", "1", "-o", "x"]):
            code, told = run.json(*command)
            assert (code, told["error"]["hint"]) == (3, f"name that: {meant}"), told
        assert run("report", named, "-q", "--force") == (0, f"{meant}.html\n")
    code, told = run.json("average", "ckpts", "--recipe", "two/model.sig", "-o", "x")
    assert (code, told["error"]["hint"]) == (3, "name its manifest: --recipe two/ema-manifest.json")


def test_gates_hold_for_it_too(run: InProcess, big: Mapping[str, Path]):
    """What is demanded is demanded of what is found."""
    code, told = run.json("average", "ckpts", "--recipe", manifest_of(big["none"]), "--min-count", "4", "-o", "x.pt")
    assert (code, "--min-count 4" in told["error"]["message"]) == (6, True)


def test_a_release_with_sums_is_repeated_with_sums(run: InProcess, big: Mapping[str, Path]):
    """A manifest with sums gives one with sums; without a manifest nothing would be compared, so there must be one."""
    assert_repeats(run, big["sums"], ["ckpts"])
    code, told = run.json("average", "ckpts", "--recipe", manifest_of(big["sums"]), "-o", "bare.pt", "--no-manifest")
    assert (code, told["error"]["message"].split(":")[0]) == (2, "--recipe")


@pytest.mark.slow
def test_an_epoch_that_only_the_run_completes_is_not_a_changed_clock(cli: InProcess):
    """Composer's last checkpoint of an epoch says that it is batch 12 of epoch 0: the run makes that one epoch."""
    run = str(COMPOSER / "every-batch")
    assert cli("average", run, "--half-life", "8ba", "-o", "x.safetensors").code == 0
    done = cli("verify", "x.safetensors", "--against", run)
    assert (done.code, "all bytes are those of" in done.out + done.err) == (0, True), done
    done = cli("average", run, "--recipe", "x.safetensors.manifest.json", "-o", "y.safetensors")
    assert done.code == 0, done
