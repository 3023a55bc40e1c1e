"""All files of docs/ that are made, or that have a part that is."""

from __future__ import annotations

from pathlib import Path

from . import command_line, pictures, rooms


def made(root: Path) -> dict[Path, str]:
    """Return the whole text of each file, as it is to be now."""
    docs = root / "docs"
    architecture = docs / "explanation" / "architecture.md"
    return {
        docs / "reference" / "command-line.md": command_line.page(),
        architecture: rooms.fill(architecture.read_text("utf-8"), root),
        docs / "pictures" / "layers.svg": rooms.picture(root),
        **{docs / "pictures" / f"{name}.svg": text for name, text in pictures.all_of_them().items()},
    }
