"""The model card: what the Hub reads in front, what people read below, and nothing that differs between equal runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from ema_cli.averaging import average
from ema_cli.checkpoint import Pretrained
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time
from ema_cli.planning.entry import Entry
from ema_cli.planning.plan import Plan, make_plan
from ema_cli.runs.run import open_run
from ema_cli.writing.card import model_card
from ema_cli.writing.target import parse_target
from tests.conftest import Cli, write_hf_run, write_torch_run

TRANSFORMERS = b'{"model_type": "llama"}'


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A plan of three checkpoints of the Hugging Face Trainer."""
    folder = tmp_path_factory.mktemp("card") / "run"
    write_hf_run(folder, [100, 200, 300])
    return plan_of(folder)


def plan_of(folder: Path, **recipe: object) -> Plan:
    """Plan an average of a folder."""
    return make_plan(open_run([folder]), Recipe(**(recipe or {"half_life": Time.parse("100ba")})))  # type: ignore[arg-type]


def called(plan: Plan, base: str | None) -> Plan:
    """Return the plan of checkpoints whose file of tensors is called `base` in a folder that loads."""
    pretrained = Pretrained(base) if base else None
    entries = [
        dataclasses.replace(entry, checkpoint=dataclasses.replace(entry.checkpoint, pretrained=pretrained))
        for entry in plan.entries
    ]
    return dataclasses.replace(plan, entries=tuple(entries))


def front(card: str) -> list[str]:
    """Return the lines of the front matter."""
    assert card.startswith("---\n")
    return card.split("---\n")[1].splitlines()


TAGS = ["tags:", "- ema", "- weight-averaging"]


def test_the_whole_card(plan: Plan):
    """Front matter, what the weights are, the checkpoints with clocks and weights, and how to make them again."""
    config = b'{"model_type": "llama", "_name_or_path": "org/base-7b"}'
    assert model_card(plan, {"config.json": config}, manifest="ema-manifest.json") == (
        "---\n"
        "base_model: org/base-7b\n"
        "library_name: transformers\n"
        "tags:\n"
        "- ema\n"
        "- weight-averaging\n"
        "---\n"
        "\n"
        "# Averaged weights\n"
        "\n"
        "These weights are the weighted average of 3 checkpoints of one training run, with a half-life of 100ba and an "
        "update every 1ba. ema-cli 0.1.0 made them.\n"
        "\n"
        "| checkpoint | clock | weight |\n"
        "|---|---|---:|\n"
        "| `checkpoint-100` | 100ba | 0.25 |\n"
        "| `checkpoint-200` | 200ba | 0.25 |\n"
        "| `checkpoint-300` | 300ba | 0.5 |\n"
        "\n"
        "## How to reproduce\n"
        "\n"
        "`ema-manifest.json` says what was asked for, and which checkpoints were read. A check of these files, and "
        "the same\nbytes again, from where the checkpoints lie (`CHECKPOINTS`):\n"
        "\n"
        "```bash\n"
        "ema-cli verify .\n"
        "ema-cli average CHECKPOINTS --recipe ema-manifest.json -o ../again\n"
        "```\n"
    )


def test_the_commands_of_a_card_work_one_after_the_other(cli: Cli, tmp_path: Path):
    """Its commands, one after the other in the folder: what is made again does not lie in what is checked."""
    write_hf_run(tmp_path / "run", [100, 200, 300])
    assert cli("average", "run", "--half-life", "100ba", "-o", "release").code == 0
    commands = (tmp_path / "release/README.md").read_text().split("```bash\n")[1].split("```")[0].splitlines()
    for command in (each.replace("CHECKPOINTS", "../run").split() for each in commands):
        assert command[0] == "ema-cli"
        done = cli(*command[1:], cwd=tmp_path / "release")
        assert done.code == 0, done
    assert cli("verify", "release").code == 0
    assert (tmp_path / "again/SHA256SUMS").read_bytes() == (tmp_path / "release/SHA256SUMS").read_bytes()


def test_without_a_manifest_the_card_tells_of_none(plan: Plan):
    """What is not there is not named."""
    card = model_card(plan, {}, manifest=None)
    assert "manifest" not in card
    assert card.endswith("| 0.5 |\n")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("org/base-7b", True),
        ("Org.x/a_b.C-1", True),
        ("gpt2", False),  # which may be a folder as well
        ("./out/model", False),
        ("/home/me/model", False),
        ("../model", False),
        ("~/model", False),
        ("a/b/c", False),
        ("out/checkpoint-500", False),
        ("org/", False),
        ("org./a", False),
        ("org-/a", False),
        ("org/a--b", False),
        ("org/a..b", False),
        ("org/a.", False),
        ("org/a-", False),
        ("org/a.git", False),
        ("org/a" + "b" * 91, True),
        ("org/a" + "b" * 92, False),
        ("o/1", True),
        ("org/name\n- evil: yes", False),
        ("org/name: x", False),
        ("org\\name/x", False),
        ("été/modèle", False),
        ("", False),
        (5, False),
        (None, False),
    ],
)
def test_the_base_model_is_one_of_the_hub(plan: Plan, name: object, told: bool):
    """A name of an owner and a model is told; a path of somebody's disk, or text that YAML reads otherwise, is not."""
    config = json.dumps({"model_type": "llama", "_name_or_path": name}).encode()
    adapter = json.dumps({"base_model_name_or_path": name}).encode()
    for found, library in (({"config.json": config}, "transformers"), ({"adapter_config.json": adapter}, "peft")):
        base = "model" if library == "transformers" else "adapter_model"
        lines = front(model_card(called(plan, base), found, manifest=None))
        assert lines == [*([f"base_model: {name}"] if told else []), f"library_name: {library}", *TAGS]


@pytest.mark.parametrize(
    ("base", "configs", "library"),
    [
        ("model", {"config.json": TRANSFORMERS}, "transformers"),
        ("model", {"config.json": TRANSFORMERS, "modules.json": b"[]"}, "sentence-transformers"),
        ("model", {"config.json": b"{}"}, None),  # of a model of one's own
        ("model", {"config.json": b"no json"}, None),
        ("model", {"config.json": b"[" * 100_000}, None),
        ("model", {"config.json": b"[1]"}, None),
        ("model", {}, None),
        ("adapter_model", {"adapter_config.json": b"{}"}, "peft"),
        ("adapter_model", {}, None),
        ("diffusion_pytorch_model", {"config.json": b"{}"}, "diffusers"),
        ("pytorch_lora_weights", {}, "diffusers"),
        (None, {}, None),
    ],
)
def test_the_library_is_named_where_it_is_known(plan: Plan, base: str | None, configs: dict[str, bytes], library: str):
    """By what the weights are called, and by the configuration beside them."""
    expected = [f"library_name: {library}"] if library else []
    assert front(model_card(called(plan, base), configs, manifest=None)) == [*expected, *TAGS]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("run/step-10.pt", "`run/step-10.pt`"),
        ("a|b", "a&#124;b"),
        ("`x`", "&#96;x&#96;"),
        ("<script>", "&#60;script&#62;"),
        ("[x](http:y)", "&#91;x&#93;&#40;http&#58;y&#41;"),
        ("a\nb", "a&#92;nb"),
        ("a\u202eb", "a&#92;u202eb"),
        ("\udce9", "&#92;udce9"),
        ("层-*1*", "层&#45;&#42;1&#42;"),
        (" x", "&#32;x"),
    ],
)
def test_names_are_text_and_never_markdown(plan: Plan, name: str, shown: str):
    """A file may have any name; the table stays a table."""
    entry = plan.entries[-1]
    odd = dataclasses.replace(entry, checkpoint=dataclasses.replace(entry.checkpoint, name=name))
    card = model_card(dataclasses.replace(plan, entries=(*plan.entries[:-1], odd)), {}, manifest=None)
    assert card.splitlines()[-1] == f"| {shown} | 300ba | 0.5 |"
    card.encode()


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"half_life": Time.parse("0.5ba")}, "with a half-life of 0.5ba. "),
        ({"smoothing": 0.9}, "with a smoothing of 0.9 at each checkpoint. "),
        (
            {"smoothing": 0.9, "update_interval": Time.parse("10ba")},
            "with a smoothing of 0.9 and an update every 10ba. ",
        ),
        ({"profile": "power", "sigma_rel": 0.1}, "with the profile power and the relative width 0.1. "),
        ({"profile": "uniform"}, "with the profile uniform. "),
    ],
)
def test_the_law_is_told(plan: Plan, recipe: dict[str, object], words: str):
    """Whatever was asked for is in the text."""
    assert words in model_card(dataclasses.replace(plan, recipe=Recipe(**recipe)), {}, manifest=None)  # type: ignore[arg-type]


def test_of_many_checkpoints_the_newest_are_listed(plan: Plan):
    """A card of a thousand rows is nobody's; the rest is summed up."""
    entry = plan.entries[-1]
    many = tuple(Entry(entry.checkpoint, Time.parse(f"{each}ba"), entry.gap, 0.005) for each in range(1, 201))
    lines = model_card(dataclasses.replace(plan, entries=many), {}, manifest=None).splitlines()
    assert len([line for line in lines if line.startswith("| `")]) == 100
    assert lines[-1] == "| 100 older | up to 100ba | 0.5 |"


def test_a_folder_gets_a_card(tmp_path: Path):
    """Any folder that is written has one, that of a plain training loop's files, too; a single file has none."""
    write_torch_run(tmp_path / "run", [1, 2])
    plan = plan_of(tmp_path / "run", half_life=Time.parse("1ba"))
    average(plan, parse_target(tmp_path / "out"))
    assert (tmp_path / "out" / "README.md").read_text() == model_card(plan, {}, manifest="ema-manifest.json")
    average(plan, parse_target(tmp_path / "one.safetensors"))
    assert not (tmp_path / "README.md").exists()
    average(plan, parse_target(tmp_path / "bare"), manifest=False)
    assert (tmp_path / "bare" / "README.md").read_text() == model_card(plan, {}, manifest=None)
    average(plan, parse_target(tmp_path / "out"), force=True)


def test_a_card_that_is_there_comes_along(tmp_path: Path):
    """What the user has written of the model is kept to the byte."""
    write_hf_run(tmp_path / "run", [1, 2])
    (tmp_path / "run" / "checkpoint-2" / "README.md").write_bytes(b"mine\r\n")
    average(plan_of(tmp_path / "run", half_life=Time.parse("1ba")), parse_target(tmp_path / "out"))
    assert (tmp_path / "out" / "README.md").read_bytes() == b"mine\r\n"


def test_equal_runs_have_equal_cards(tmp_path: Path):
    """Where the run lies and where the average goes is nowhere in it."""
    cards = set()
    for place in ("here", "there"):
        write_hf_run(tmp_path / place / "run", [1, 2])
        target = tmp_path / place / f"out-{place}"
        average(plan_of(tmp_path / place / "run", half_life=Time.parse("1ba")), parse_target(target))
        cards.add((target / "README.md").read_text())
    assert len(cards) == 1
