"""Laws with negative weights, and weights of any sum, from the command line to the byte: average, verify, repeat."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ema_cli import Recipe, average, make_plan, open_run
from tests.conftest import Cli

CLOCKS = range(100, 801, 100)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A base model elsewhere, and a training from it: float32, bfloat16, a frozen layer of each, and a counter."""
    random = torch.Generator().manual_seed(3)
    weight, frozen = torch.randn(40, 7, generator=random), torch.randn(30, generator=random)

    def save(path: Path, step: int) -> None:
        path.parent.mkdir(exist_ok=True)
        tensors = {"w": weight, "half": weight[0].bfloat16(), "frozen": frozen, "half_frozen": frozen.bfloat16()}
        save_file({**tensors, "step": torch.tensor([step])}, path)

    save(tmp_path / "models/pretrained.safetensors", 0)
    for clock in CLOCKS:
        weight = weight + 0.1 * torch.randn(40, 7, generator=random)
        save(tmp_path / f"ckpts/step-{clock}.safetensors", clock)
    (tmp_path / "weights.csv").write_text("name,weight\nstep-300.safetensors,-0.75\n500ba,0.5\n800ba,1.25\n")
    (tmp_path / "tasks.json").write_text('{"800ba": 1.5, "700ba": -0.25}')
    return tmp_path


LAWS = {
    "bema": ("--profile", "bema", "--base", "models/pretrained.safetensors"),
    "inner base": ("--profile", "bema", "--base", "ckpts/step-200.safetensors", "--lag", "5"),
    "extrapolated": ("--half-life", "200ba", "--extrapolate", "1.5"),
    "windows": ("--profile", "uniform", "--window", "250ba", "--extrapolate", "0.5", "--extrapolate-from", "450ba"),
    "coefficients": ("--coefficients", "weights.csv"),
    "any sum": ("--coefficients", "tasks.json", "--any-sum"),
    "share": ("--half-life", "5%ba", "--start", "200ba"),
}


def state(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path)


@pytest.mark.parametrize("name", LAWS)
def test_an_average_is_what_inspect_says_and_is_verified_and_repeated(run: Path, cli: Cli, name: str):
    """The bytes are the float64 sum by the weights of inspect; --strict passes; --recipe gives the same bytes."""
    law = LAWS[name]
    inspected = json.loads(cli("inspect", "ckpts", *law, "--json").out)["plans"][0]["entries"]
    weights = {entry["name"]: entry["weight"] for entry in inspected}
    outputs = []
    for threads in (1, 3):
        done = cli("average", "ckpts", *law, "--threads", threads, "-o", f"out{threads}.safetensors", "-q")
        assert done.code == 0, done.err
        outputs.append((run / f"out{threads}.safetensors").read_bytes())
    assert outputs[0] == outputs[1]
    out = state(run / "out1.safetensors")
    read = {each: state(next(run.glob(f"*/{each}"))) for each in weights}
    for tensor in ("w", "half"):
        expected = sum(weight * read[each][tensor].double() for each, weight in weights.items())
        tolerance = 1e-6 if tensor == "w" else 2**-8
        torch.testing.assert_close(out[tensor].double(), expected, rtol=tolerance, atol=1e-5)
    total = sum(weights.values())
    for tensor in ("frozen", "half_frozen"):
        frozen = read["step-800.safetensors"][tensor]
        if name == "any sum":
            torch.testing.assert_close(out[tensor].double(), total * frozen.double(), rtol=2**-8, atol=1e-6)
        else:
            assert torch.equal(out[tensor], frozen)
    assert out["step"].item() == 800
    named = ["models/pretrained.safetensors"] if name == "bema" else []
    against = [part for path in ("ckpts", *named) for part in ("--against", path)]
    verified = cli("verify", "out1.safetensors", *against, "--strict")
    assert verified.code == 0, verified.out + verified.err
    (run / "again").mkdir()
    again = cli(
        "average", "ckpts", *named, "--recipe", "out1.safetensors.manifest.json", "-o", "again/out1.safetensors", "-q"
    )
    assert again.code == 0, again.err
    for file in run.glob("out1.safetensors*"):
        assert (run / "again" / file.name).read_bytes() == file.read_bytes(), file.name
    told = cli("inspect", "out1.safetensors").out
    words = {"coefficients": "given coefficients, update", "any sum": "given coefficients, any sum, update"}
    assert words.get(name, "0: half-life" if "--half-life" in law else "0: profile") in told
    reported = cli("report", "out1.safetensors", *against, "-o", "page.html", "-f", "--json")
    assert (reported.code, reported.json["missing"]) == (0, []), reported.err
    assert all(each in (run / "page.html").read_text() for each in weights)


@pytest.mark.parametrize("base", ["models/pretrained.safetensors", "ckpts/step-200.safetensors"])
def test_a_base_that_is_not_finite_cannot_be_left_out(run: Path, cli: Cli, base: str):
    """The hint names the options that help: another base, or leave to pass, which works."""
    tensors = load_file(run / base)
    tensors["w"][3, 4] = float("nan")
    save_file(tensors, run / base)
    arguments = ("average", "ckpts", "--profile", "bema", "--base", base, "-o", "out.safetensors")
    done = cli(*arguments)
    assert done.code == 6
    assert f"error: {base}: 'w' is not finite at element 25" in done.err
    assert "hint:  begin with another model, --base MODEL, or let it pass with --allow-non-finite" in done.err
    assert cli(*arguments, "--allow-non-finite").code == 0


def test_a_checkpoint_is_the_base_at_its_own_clock_by_whatever_path_it_is_named(run: Path, cli: Cli):
    """Through a link, by the folder's other name, or with dots in it: it does not enter twice, nor count from 0."""
    (run / "link").symlink_to("ckpts")
    (run / "begin.safetensors").symlink_to("ckpts/step-200.safetensors")
    law = ("--profile", "bema", "--json")
    plain = json.loads(cli("inspect", "ckpts", *law, "--base", "ckpts/step-200.safetensors").out)["plans"]
    assert plain[0]["entries"][0] == {
        "name": "step-200.safetensors",
        "clock": "200ba",
        "weight": pytest.approx(0.48, 0.1),
    }
    for base in ("ckpts/../ckpts/step-200.safetensors", "link/step-200.safetensors", "begin.safetensors"):
        assert json.loads(cli("inspect", "ckpts", *law, "--base", base).out)["plans"] == plain, base


def test_the_manifest_tells_what_was_given(run: Path, cli: Cli):
    """Numbers, coefficients, and that they may have any sum; and the name of the base."""
    recipes = {}
    for name, law in LAWS.items():
        cli("average", "ckpts", *law, "-o", "out.safetensors", "-q", "-f")
        recipes[name] = json.loads((run / "out.safetensors.manifest.json").read_text())["recipe"]
    assert recipes["bema"]["base"] == "pretrained.safetensors"
    assert recipes["inner base"]["base"] == "step-200.safetensors"
    assert [recipes["inner base"][key] for key in ("lag", "multiplier", "bias_power", "ema_power")] == [5, 1, 0.2, 0.5]
    assert (recipes["extrapolated"]["extrapolate"], recipes["extrapolated"]["extrapolate_from"]) == (1.5, "400ba")
    assert recipes["coefficients"]["coefficients"] == {"step-300.safetensors": -0.75, "500ba": 0.5, "800ba": 1.25}
    assert "any_sum" not in recipes["coefficients"]
    assert recipes["any sum"]["any_sum"] is True
    assert recipes["share"]["half_life"] == "5%ba"


@pytest.mark.parametrize(
    ("key", "value", "fact"),
    [
        ("lag", 11.0, "the manifest's weights are not those that bema-11.0-1.0-0.2-0.5 gives"),
        ("base", "step-100.safetensors", "the manifest's base, 'step-100.safetensors', is not the first of its inputs"),
        ("base", None, "its clock is none, but was 0ba when it was averaged"),
    ],
)
def test_a_manifest_that_is_not_true_is_told(run: Path, cli: Cli, key: str, value: object, fact: str):
    """Other numbers, and another base than the one whose weight is there."""
    cli("average", "ckpts", *LAWS["bema"], "-o", "out.safetensors", "-q")
    path = run / "out.safetensors.manifest.json"
    manifest = json.loads(path.read_text())
    if value is None:
        del manifest["recipe"][key]
    else:
        manifest["recipe"][key] = value
        manifest["recipe"]["law"] = "bema-11.0-1.0-0.2-0.5" if key == "lag" else "bema"
    path.write_text(json.dumps(manifest))
    done = cli("average", "ckpts", "models/pretrained.safetensors", "--recipe", path, "-o", "again.safetensors")
    assert done.code in (2, 3, 4)
    assert fact in done.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--profile", "bema"), 2, "--profile bema goes with --base"),
        (("--half-life", "5ba", "--base", "models"), 2, "--base: goes with --profile bema"),
        (("--profile", "bema", "--base", "nowhere"), 2, "nowhere"),
        (("--profile", "bema", "--base", "ckpts"), 4, "ckpts: holds 8 models"),
        (("--profile", "bema", "--base", "models", "--half-life", "5ba"), 2, "only one of"),
        (("--profile", "bema", "--base", "models", "--window", "5ba"), 2, "--window is the stretch"),
        (("--from", "stored", "--profile", "bema", "--base", "models"), 2, "--base: is for raw checkpoints"),
        (("--coefficients", "nowhere.csv"), 2, "--coefficients: nowhere.csv: does not exist"),
        (("--coefficients", "tasks.json"), 2, "--coefficients: the sum is 1.25, not 1"),
        (("--any-sum", "--half-life", "5ba"), 2, "--any-sum: goes with --coefficients"),
        (("--lag", "0", "--half-life", "5ba"), 2, "--lag: goes with --profile bema"),
        (
            ("--coefficients", "weights.csv", "--series"),
            2,
            "--coefficients: an average at each clock has weights by a law",
        ),
    ],
)
def test_errors_name_the_option(run: Path, cli: Cli, arguments: tuple[str, ...], code: int, message: str):
    """One line, and nothing is written."""
    before = sorted(run.rglob("*"))
    for command in (("average", "ckpts"), ("inspect", "ckpts")):
        done = cli(*command, *arguments)
        assert (done.code, done.err.count("error:")) == (code, 1), done.err
        assert message in done.err
    assert sorted(run.rglob("*")) == before


def test_commands_in_hints_can_be_copied(run: Path, cli: Cli):
    """Paths with spaces stand in quotes."""
    (run / "ckpts").rename(run / "my ckpts")
    (run / "odd.csv").write_text("none,1\n")
    inspect, make = "ema-cli inspect 'my ckpts'", f"mkdir -p '{run}/my out'"
    for options, command in (
        (["--coefficients", "odd.csv"], inspect),
        (["--half-life", "5ba", "--start", "9999ba"], inspect),
        (["--half-life", "5ba", "-o", "my out/x.safetensors"], make),
        (["--half-life", "5ba", "--summary", "my out/s.md"], make),
    ):
        done = cli("average", "my ckpts", *options)
        assert command in done.err, done


def test_a_base_of_another_model_is_no_checkpoint_to_leave_out(run: Path, cli: Cli):
    """The hint is at another base, not at --exclude, which leaves out none."""
    save_file({"w": torch.zeros(3)}, run / "models/other.safetensors")
    done = cli("average", "ckpts", "--profile", "bema", "--base", "models/other.safetensors")
    assert (done.code, "--exclude" in done.err) == (4, False), done.err
    assert "name the model that this training began with: --base MODEL" in done.err


def test_bema_needs_batches_and_no_option_of_it_says_another_unit(tmp_path: Path, cli: Cli):
    """The hint does not ask for a half-life."""
    for epoch in (1, 2, 3):
        torch.save({"w": torch.zeros(3)}, tmp_path / f"ep{epoch}.pt")
    done = cli("average", ".", "--name-clock", "ep", "--profile", "bema", "--base", "ep1.pt")
    assert (done.code, "--half-life" in done.err, "--epoch-length" in done.err) == (4, False, True), done.err
    assert "records no clock in batches, which the profile needs" in done.err


def test_laws_that_look_at_the_whole_run_are_for_raw_checkpoints(run: Path, cli: Cli):
    """Of stored averages there is no base, no line and no coefficient: the error names the option."""
    from tests.inprocess import write_stored_run

    write_stored_run(run / "stored/ema", ("20ba", "60ba"), steps=100)
    for law, said in (("extrapolated", "--extrapolate 1.5"), ("coefficients", "--coefficients")):
        done = cli("average", "stored", "--from", "stored", *LAWS[law])
        assert (done.code, f"error: {said}: is for raw checkpoints" in done.err) == (2, True), done.err
    done = cli("average", "stored", "--from", "stored", "--half-life", "80%ba", "--allow-approximate", "-o", "o.pt")
    assert done.code == 0, done.err
    assert cli("verify", "o.pt", "--against", "stored").code == 0


def test_a_name_and_a_clock_are_of_one_checkpoint(run: Path, cli: Cli):
    """Both are checked against each other, in JSON and in CSV; the manifest has the names."""
    rows = [{"name": "step-300.safetensors", "clock": "300ba", "weight": -0.5}, {"clock": "800ba", "weight": 1.5}]
    lines = "name,clock,weight\nstep-300.safetensors,300ba,-0.5\nstep-800.safetensors,800ba,1.5\n"
    for name, right, wrong in (("a.json", json.dumps(rows), json.dumps(rows).replace('"300ba"', '"400ba"')),
                               ("a.csv", lines, lines.replace(",300ba", ",400ba"))):  # fmt: skip
        (run / name).write_text(right)
        done = cli("average", "ckpts", "--coefficients", name, "-o", f"{name}.safetensors")
        assert done.code == 0, done
        given = json.loads((run / f"{name}.safetensors.manifest.json").read_text())["recipe"]["coefficients"]
        assert sorted(given.values()) == [-0.5, 1.5]
        (run / name).write_text(wrong)
        done = cli("average", "ckpts", "--coefficients", name)
        assert done.code == 4, done
        assert "--coefficients has step-300.safetensors at 400ba, and it is at 300ba" in done.err
    (run / "a.csv").write_text(lines.replace("300ba", "3ep"))
    assert "and it records no clock in epochs" in cli("average", "ckpts", "--coefficients", "a.csv").err


def test_a_base_without_its_name_is_asked_for(run: Path, cli: Cli):
    """The base lies outside of the run: who verifies names it, too."""
    cli("average", "ckpts", *LAWS["bema"], "-o", "out.safetensors", "-q")
    done = cli("verify", "out.safetensors", "--against", "ckpts")
    assert done.code == 3
    assert "'pretrained.safetensors', which entered the average, is missing" in done.err
    assert "name the model that the training began with, too: ckpts MODEL" in done.err


def test_a_base_with_a_note_is_no_more_than_the_checkpoints_give(tmp_path: Path, cli: Cli):
    """What is said of the base is in the manifest, and follows from it: nothing is left that was not compared."""
    (tmp_path / "ckpts").mkdir()
    torch.save({"model": {"_orig_mod.w": torch.ones(5)}, "step": 0}, tmp_path / "base.pt")
    for step in (100, 200):
        torch.save({"model": {"w": torch.full((5,), float(step))}, "step": step}, tmp_path / f"ckpts/step-{step}.pt")
    cli("average", "ckpts", "--profile", "bema", "--base", "base.pt", "-o", "out.safetensors", "-q")
    notes = json.loads((tmp_path / "out.safetensors.manifest.json").read_text())["notes"]
    assert notes == ["base.pt: prefixes removed from names: _orig_mod. (--keep-prefix keeps them)"]
    done = cli("verify", "out.safetensors", "--against", "ckpts", "--against", "base.pt", "--strict")
    assert (done.code, "all bytes are those of 3 checkpoints" in done.out) == (0, True), done


def test_from_python_the_run_is_opened_with_its_base(run: Path, cli: Cli):
    """`open_run(base=...)`, a recipe, and the same bytes as from the command line."""
    opened = open_run(run / "ckpts", base=run / "models/pretrained.safetensors")
    average(make_plan(opened, Recipe(profile="bema")), run / "python.safetensors")
    cli("average", "ckpts", *LAWS["bema"], "-o", "out.safetensors", "-q")
    assert (run / "python.safetensors").read_bytes() == (run / "out.safetensors").read_bytes()
    given = {"step-300.safetensors": -0.75, "500ba": 0.5, "800ba": 1.25}
    average(make_plan(open_run(run / "ckpts"), Recipe(coefficients=given)), run / "given.safetensors")
    cli("average", "ckpts", *LAWS["coefficients"], "-o", "out.safetensors", "-q", "-f")
    assert (run / "given.safetensors").read_bytes() == (run / "out.safetensors").read_bytes()
