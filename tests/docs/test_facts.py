"""What the pages say of options, commands, tensors and attacks is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ema_cli.law.laws import PROFILES, make_law
from scripts.pages import command_line
from tests.docs.pages import DOCS, PAGES, README, ROOT, name_of, table
from tests.inprocess import InProcess

# Typer's own, those of the benchmark, and of model_signing.
FOREIGN = {
    "--install-completion",
    "--full",
    "--rounds",
    "--peers",
    "--sets",
    "--markdown",
    "--chart",
    "--decay",
    "--overwrite",
    "--restore-file",
    "--before",
}
SIGNERS = {
    "--signature", "--public_key", "--ignore_unsigned_files", "--use_ambient_credentials", "--identity",
    "--identity_provider",
}  # fmt: skip
LAUNCHERS = {"--array", "--ntasks-per-node"}  # of Slurm's
SCRIPTS = {"--measure", "--links", "--readers", "--tools", "--data", "--latency", "--rate"}
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.complex64, torch.float64, torch.complex128)
WHOLE = (torch.int64, torch.int8, torch.uint8, torch.bool)
HOW_TO, EXPLANATION = DOCS / "how-to", DOCS / "explanation"


def options_of_all_commands() -> set[str]:
    """Return every long option of every command."""
    parameters = [parameter for command in command_line.commands().values() for parameter in command.params]
    return {"--help"} | {spelling for parameter in parameters for spelling in parameter.opts}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_option_on_a_page_exists(page: Path) -> None:
    """Options that a page names are those of a command, or of the benchmark."""
    named = set(re.findall(r"(?<![\w\-&])--[a-z][a-z_-]*[a-z]", page.read_text("utf-8")))
    assert named <= options_of_all_commands() | FOREIGN | SIGNERS | LAUNCHERS | SCRIPTS


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_make_target_on_a_page_exists(page: Path) -> None:
    """`make NAME` is a target of the Makefile."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"(?:`|\$ )make ([a-z-]+)", page.read_text("utf-8")):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_conditions_of_a_release_are_those_that_the_commands_have() -> None:
    """One row for each option that can stop a job with exit code 6."""
    rows = [cells[0].split()[0] for cells in table(HOW_TO / "release.md", "option")]
    panels = {
        parameter.opts[0]
        for parameter in command_line.commands()["average"].params
        if "exit 6" in (getattr(parameter, "rich_help_panel", None) or "")
    }
    assert set(rows) == panels


def test_each_kind_of_tensor_is_treated_as_the_table_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Floats and complex numbers are averaged in their type, integers and bools are the newest, 8 bits are refused."""
    rows = {cells[0]: cells[1] for cells in table(EXPLANATION / "arithmetic.md", "tensor")}
    averaged = {name for cell, result in rows.items() if "averaged" in result for name in cell.split(", ")}
    kinds = {str(dtype).removeprefix("torch."): dtype for dtype in (*FLOATS, *WHOLE)}
    assert averaged == {name for name, dtype in kinds.items() if dtype in FLOATS}
    for step in (1, 2):
        tensors = {name: torch.tensor([step % 2, step], dtype=dtype) for name, dtype in kinds.items()}
        torch.save({"model": tensors, "step": step}, tmp_path / f"step-{step}.pt")
    program = InProcess(tmp_path, capsys)
    assert program("average", tmp_path, "--profile", "uniform", "-o", tmp_path / "out.pt")[0] == 0, program.err
    for name, tensor in torch.load(tmp_path / "out.pt").items():
        expected = [0.5, 1.5] if name in averaged else [0, 2]
        assert torch.equal(tensor, torch.tensor(expected, dtype=kinds[name])), name
    assert rows["8-bit floats, packed weights"].startswith("refused")
    save_file({"q": torch.zeros(2).to(torch.float8_e4m3fn)}, tmp_path / "step-3.safetensors")
    assert program("average", tmp_path / "step-3.safetensors", "--profile", "uniform")[0] == 3


def test_every_law_has_a_row() -> None:
    """With the class that its options make."""
    shown = []
    for _, options, name, _ in table(EXPLANATION / "law.md", "law"):
        given: dict[str, Any] = {key.replace("-", "_"): value for key, value in re.findall(r"--(\S+) (\S+)", options)}
        if "coefficients" in given:
            given["coefficients"] = {"step-100": 1.0}
        law = make_law(
            **{key: float(value) if re.fullmatch(r"[\d.]+", str(value)) else value for key, value in given.items()}
        )
        assert type(law).__name__ == name
        shown.append(given.get("profile"))
    assert shown == [None, None, None, *PROFILES, None, None]


def test_no_word_has_two_meanings() -> None:
    """The list has each word once, and recommends none that it advises against."""
    rows = table(EXPLANATION / "words.md", "word")
    words = [word for cells in rows for word in cells[0].split(", ")]
    assert len(words) == len(set(words))
    assert all(meaning for _, meaning, *_ in rows)


def test_the_readme_names_the_tools_that_it_is_compared_with() -> None:
    """Each with all its columns; ours does not claim everything."""
    rows = table(README, "tool")
    assert [cells[0].split(",")[0].strip("*") for cells in rows] == [
        "ema-cli", "mergekit", "timm", "fairseq", "Composer", "Lightning", "torch",
    ]  # fmt: skip
    assert all(len(cells) == 7 and all(cells) for cells in rows)
