"""What `watch` and `tune` are measured with: what lies there before each run, outside of the time."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from . import datasets
from .commands import Inputs, ema_cli, watch_words
from .rounds import Prepare, discard

_FOLDED = 2  # checkpoints before the one that is measured: of the first copy nothing is rounded off


def watched(inputs: Inputs, laws: Sequence[str], work: Path) -> Inputs:
    """Watch two checkpoints of a run, and return what folding one more into each of these averages reads and writes.

    It reads the checkpoint and the averages with what was rounded off them, six bytes for each parameter, and writes
    these anew, and the averages in the type of the checkpoints. What it writes is told of one average, as elsewhere.

    Raises:
        RuntimeError: where ema-cli cannot watch it.
    """
    run, before = work / "watched-run", work / "watched-before"
    for place in (run, before):
        discard(place)
        place.mkdir()
    checkpoints = datasets.checkpoints(inputs.data, inputs.run)[: _FOLDED + 1]
    for path in checkpoints[:_FOLDED]:
        (run / path.name).symlink_to(path)
    words = [*ema_cli(), *watch_words(run, laws, before / "out")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ema-cli cannot watch set {inputs.data.name}: {done.stderr.strip()[-500:]}")
    newest = checkpoints[_FOLDED]
    (run / newest.name).symlink_to(newest)
    kept = 6 * sum(tensor.count for tensor in inputs.data.model.tensors)  # of each average
    return replace(
        inputs,
        run=run,
        files=datasets.input_files([newest]),
        weights={newest: 1.0},
        bytes_to_read=inputs.data.model.nbytes + kept * len(laws),
        bytes_to_write=inputs.bytes_to_write + kept,
    )


def prepared(kind: str, work: Path, prepare: Prepare) -> Prepare:
    """Return what is done before each run of a kind of row: its output lies in a folder that is as it was before."""
    folder = work / kind
    if kind not in ("watch", "tune"):
        return prepare

    def prepare_anew() -> None:
        discard(folder)
        if kind == "watch":  # what lies there is never written again, only replaced
            shutil.copytree(work / "watched-before", folder, copy_function=os.link)
        else:
            folder.mkdir()
        prepare()

    return prepare_anew


def clear(work: Path) -> None:
    """Delete what the rows have left."""
    for name in ("watch", "tune", "watched-run", "watched-before"):
        discard(work / name)
