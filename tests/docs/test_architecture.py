"""A newcomer finds the place in the code by names alone: README, page, room, module, name."""

from __future__ import annotations

import ast
import re

import pytest

from tests.docs.pages import DOCS, README, ROOT, links, table

PAGE = DOCS / "explanation" / "architecture.md"
QUESTIONS = {cells[0]: cells[1:] for cells in table(PAGE, "question")}


def names_in(source: str) -> set[str]:
    """Return what a module defines at its top."""
    defined = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Assign):
            defined |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            defined.add(node.target.id)
    return defined


def test_the_readme_leads_to_the_architecture() -> None:
    """In one step."""
    assert "docs/explanation/architecture.md" in links(README)


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_leads_to_a_name_that_is_there(question: str) -> None:
    """The page links to the module, which lies in the room and defines the name."""
    page, room, place = QUESTIONS[question]
    module, name = re.fullmatch(r"\[([\w/.]+)\]\([^)]+\): (\w+)", place).groups()
    explained = (PAGE.parent / re.search(r"\(([^)#]+)", page)[1]).resolve()
    assert any(link.endswith(f"ema_cli/{module}") for link in links(explained))
    assert f"`{name}`" in explained.read_text("utf-8")
    assert (ROOT / "ema_cli" / room / "__init__.py").exists()
    assert module.startswith(f"{room}/")
    assert name in names_in((ROOT / "ema_cli" / module).read_text("utf-8"))


def test_the_four_questions_are_answered() -> None:
    """What a newcomer asks first."""
    for words in ("infinity", "Composer's epochs", "--force", "half-life"):
        assert any(words in question for question in QUESTIONS), words


def test_six_files_are_read_first() -> None:
    """The list names six modules, each with a link."""
    listed = re.findall(r"^\d\. \[`([\w/.]+)`\]", PAGE.read_text("utf-8"), re.MULTILINE)
    assert len(listed) == 6
    assert all((ROOT / "ema_cli" / module).exists() for module in listed)


def test_the_checklists_name_files_that_are_there() -> None:
    """Each path of CONTRIBUTING.md, in full or below the package, exists."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    named = re.findall(r"`((?:\w+/)*\w+(?:/|\.py|\.json))`", text)
    assert len(named) >= 12
    folders = (ROOT, ROOT / "ema_cli", ROOT / "ema_cli" / "law", ROOT / "ema_cli" / "formats" / "trainers")
    for name in named:
        assert any((folder / name).exists() for folder in folders), name
