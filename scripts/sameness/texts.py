"""Texts without what differs from run to run: times, rates, memory, free space, and the names of temporary folders."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

_SIZE = r"[\d.,]+(?:e\+\d+)? [kMGT]?B"
_VARIABLE = (
    (rf"in \d+\.\d+ s \({_SIZE}/s\)", "in SECONDS s (RATE/s)"),
    (rf"peak memory {_SIZE}", "peak memory SIZE"),
    (rf"some {_SIZE} of memory; {_SIZE} are free", "some SIZE of memory; SIZE are free"),
    (r"but \d+ are free", "but COUNT are free"),
    (r"this average needs \d+ MB", "this average needs COUNT MB"),
    (r"(hint:\s+|\"hint\": \")--max-memory \d+MB", r"\1--max-memory COUNTMB"),
    (r'"(seconds|bytes_per_second|peak_memory_bytes|memory_bytes|bytes_free)": [\d.e+-]+', r'"\1": NUMBER'),
    (r"\.ema-cli-[0-9a-f]{16}", ".ema-cli-TEMPORARY"),
    # What is told of every half minute, where a machine is that slow.
    (rf"(?m)^\w+: {_SIZE} of {_SIZE}, {_SIZE}/s, \d+ s left\n", ""),
)


def normalised(text: str, folders: Mapping[Path, str]) -> str:
    """Return the text with words for what is variable, and for the paths of folders."""
    for folder, word in folders.items():
        text = text.replace(str(folder), word)
    for pattern, word in _VARIABLE:
        text = re.sub(pattern, word, text)
    return text
