"""Make the parts of docs/ that come from the program itself: the command line, the rooms, the pictures.

Run by `make docs`; a test fails where a page is not what this makes now.
"""

from __future__ import annotations

from pathlib import Path

from pages.files import made

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Write the files that have changed, and name them."""
    for path, text in made(ROOT).items():
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
