"""The rooms of the package: their table on the architecture page, and the picture of their layers.

Both come from the layers that `lint-imports` checks (pyproject.toml) and from the docstrings of the rooms themselves.
"""

from __future__ import annotations

import ast
import re
import textwrap
import tomllib
from dataclasses import dataclass
from html import escape
from pathlib import Path

BEGIN, END = "<!-- Made by `make docs` from pyproject.toml and the docstrings. -->", "<!-- Until here. -->"

_WIDTH, _MARGIN, _GAP = 760, 16, 8
_CHARACTER = 6.1  # the width of one at 11 pixels, at most: text is wrapped before it leaves its box
_LINE = 14


@dataclass(frozen=True, slots=True)
class Room:
    """A package or a module at the top of the package, and the paragraphs of its docstring."""

    name: str
    is_package: bool
    paragraphs: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """Return what lives there."""
        return self.paragraphs[0]

    @property
    def imports(self) -> str:
        """Return what it may import, where its docstring says so."""
        allowed = re.search(r"May import ([^.]+)\.", " ".join(self.paragraphs))
        return allowed[1] if allowed else ""


def layers(root: Path) -> list[list[Room]]:
    """Return the rooms by layer, the highest first, as the import check has them."""
    contracts = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    (lines,) = [contract["layers"] for contract in contracts if contract.get("containers") == ["ema_cli"]]
    return [[_room(root, name) for name in re.split(r"\s*[:|]\s*", line)] for line in lines]


def fill(page: str, root: Path) -> str:
    """Return the architecture page with the table of rooms as it is now."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    rows = [_row(room) for layer in layers(root) for room in layer if not room.name.startswith("_")]
    table = "\n".join(["| room | what lives there | may import |", "|---|---|---|", *rows])
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def picture(root: Path) -> str:
    """Return the layers as an SVG picture: a room imports from rooms below it only."""
    parts, top = [], _MARGIN
    for layer in layers(root):
        shown = [room for room in layer if not room.name.startswith("_")]
        if not shown:
            continue
        width = (_WIDTH - 2 * _MARGIN - _GAP * (len(shown) - 1)) / len(shown)
        wrapped = [textwrap.wrap(room.sentence, int((width - 20) / _CHARACTER)) for room in shown]
        height = 30 + _LINE * max(map(len, wrapped))
        for number, (room, lines) in enumerate(zip(shown, wrapped, strict=True)):
            parts.append(_box(_MARGIN + number * (width + _GAP), top, width, height, room, lines))
        top += height + _GAP
    size = f'width="{_WIDTH}" height="{top + _MARGIN - _GAP}" viewBox="0 0 {_WIDTH} {top + _MARGIN - _GAP}"'
    title = "The rooms of ema_cli in layers: each imports only from those below it"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" font-family="sans-serif">\n'
        f"<title>{title}</title>\n"
        '<rect width="100%" height="100%" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _room(root: Path, name: str) -> Room:
    folder = root / "ema_cli" / name
    source = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(source.read_text("utf-8"))) or ""
    paragraphs = tuple(" ".join(paragraph.split()) for paragraph in docstring.split("\n\n"))
    return Room(name, folder.is_dir(), paragraphs)


def _row(room: Room) -> str:
    target = room.name if room.is_package else f"{room.name}.py"
    return f"| [`{target}`](../../ema_cli/{target}) | {_cell(room.sentence)} | {_cell(room.imports)} |"


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("*", r"\*").replace("<", "&lt;")


def _box(x: float, y: float, width: float, height: float, room: Room, lines: list[str]) -> str:
    fill = "#dbe9f6" if room.is_package else "#f3ead9"
    rows = [f'<text x="{x + 10:.1f}" y="{y + 19:.1f}" font-size="13" font-weight="bold">{escape(room.name)}</text>']
    rows += [
        f'<text x="{x + 10:.1f}" y="{y + 19 + _LINE * number:.1f}" font-size="11" fill="#333333">{escape(line)}</text>'
        for number, line in enumerate(lines, start=1)
    ]
    box = f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="4" fill="{fill}"/>'
    return "\n".join([box, *rows])
