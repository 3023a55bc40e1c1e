"""Make the inputs: every container, every layout of a trainer's, every way to be odd; small, and always the same."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from . import containers, damaged, folders, made, refused, runs, trainers

COMPOSER = Path(__file__).parents[2] / "tests" / "data" / "composer"  # what Composer itself wrote
GROUPS: Mapping[str, Mapping[str, Callable[[Path], object]]] = {
    "runs": runs.MAKERS,
    "containers": containers.MAKERS,
    "trainers": {**trainers.MAKERS, **folders.MAKERS},
    "refused": refused.MAKERS,
    "damaged": damaged.MAKERS,
    "stored": made.STORED,
}


def make_inputs(folder: Path, program: Path | None, composer: Path | None) -> int:
    """Fill a new folder, and return how many inputs are in it."""
    composer = composer or COMPOSER
    if not composer.is_dir():
        raise SystemExit(f"{composer}: no such folder; say with --composer where the files are that Composer wrote")
    folder.mkdir(parents=True)
    for group, makers in GROUPS.items():
        for name, make in makers.items():
            make(folder / group / name)
    shutil.copytree(composer, folder / "composer", symlinks=True)
    _make_texts(folder / "texts")
    made.make_averages(folder, program or Path(sys.executable).parent / "ema-cli")
    return sum(map(len, GROUPS.values())) + 1


def _make_texts(folder: Path) -> None:
    """Write lists of names for --expect-keys, good ones and others."""
    from .tensors import model

    names = list(model(1))
    folder.mkdir()
    texts = {
        "names.txt": "".join(f"{name}\n" for name in names),
        "fewer.txt": "".join(f"{name}\n" for name in names[:-2]),
        "others.json": json.dumps([*names, "more.weight"]),
        "index.json": json.dumps({"weight_map": dict.fromkeys(names, "model.safetensors")}),
        "empty.txt": "\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "bytes.txt").write_bytes(b"\xff\xfe\xfa")
