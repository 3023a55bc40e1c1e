"""The pages and pictures that are made from the program are what it makes now, and complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scripts.pages import command_line, rooms
from scripts.pages.files import made
from tests.docs.pages import DOCS, ROOT, table

COMMAND_LINE = (DOCS / "reference" / "command-line.md").read_text("utf-8")


@pytest.fixture(scope="module")
def files() -> dict[Path, str]:
    """Make all of them once."""
    return made(ROOT)


@pytest.mark.slow
def test_every_made_file_is_what_make_docs_writes_now(files: dict[Path, str]) -> None:
    """Where this fails, `make docs` mends it."""
    assert [path.name for path, text in files.items() if path.read_text("utf-8") != text] == []


@pytest.mark.slow
def test_every_drawn_picture_is_made(files: dict[Path, str]) -> None:
    """No SVG is left of a chart that is gone."""
    assert set((DOCS / "pictures").glob("*.svg")) == {path for path in files if path.suffix == ".svg"}


@pytest.mark.parametrize("name", command_line.commands())
def test_every_command_and_option_is_on_the_page(name: str) -> None:
    """Under the heading of its command, with all its spellings; and each has help."""
    section = COMMAND_LINE.split(f"\n## {name}\n")[1].split("\n## ")[0]
    command = command_line.commands()[name]
    assert command.help
    for parameter in command.params:
        for spelling in (*parameter.opts, *parameter.secondary_opts):
            if spelling.startswith("-"):
                assert re.search(rf"`{re.escape(spelling)}[ `]", section), spelling
        assert parameter.help, parameter.name


@pytest.mark.slow
def test_every_room_is_on_the_architecture_page_and_in_the_picture(files: dict[Path, str]) -> None:
    """All that lies at the top of the package but what is private, each with a sentence."""
    present = {
        path.name
        for path in (ROOT / "ema_cli").iterdir()
        if not path.name.startswith("_") and ((path / "__init__.py").exists() or path.suffix == ".py")
    }
    rows = {re.sub(r"[\[\]]|\(.*\)", "", cells[0]): cells[1] for cells in table(rooms_page(), "room")}
    assert set(rows) == present
    assert all(sentence.endswith(".") for sentence in rows.values())
    picture = files[DOCS / "pictures" / "layers.svg"]
    assert set(re.findall(r'font-weight="bold">([^<]+)<', picture)) == {name.removesuffix(".py") for name in present}


def rooms_page() -> Path:
    """Return the architecture page."""
    return DOCS / "explanation" / "architecture.md"


def test_rooms_of_one_layer_stand_side_by_side() -> None:
    """The layers are those that the import check keeps, the highest first."""
    names = [[room.name for room in layer] for layer in rooms.layers(ROOT)]
    assert names.index(["cli"]) < names.index(["planning"]) < names.index(["errors"])
    assert any(len(layer) > 1 for layer in names)
