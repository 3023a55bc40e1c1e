"""The extension that setup.py builds from compiled.c."""

from typing_extensions import Buffer

Arguments = tuple[
    int, tuple[Buffer, ...], bytes, Buffer, tuple[Buffer, ...], bytes, bytes, tuple[Buffer, ...],
    int, int, bool, bool, float, bool,
]  # fmt: skip
"""Those of `add`."""

INTERFACE: int

def add(
    variant: int,
    rows: tuple[Buffer, ...],
    kinds: bytes,
    weights: Buffer,
    newest: tuple[Buffer, ...],
    newest_kinds: bytes,
    begins: bytes,
    sums: tuple[Buffer, ...],
    count: int,
    target: int,
    wide: bool,
    plain: bool,
    limit: float,
    ends: bool,
    /,
) -> int: ...
def read_and_add(
    arguments: Arguments,
    spans: Buffer,
    counts: Buffer,
    keeps: bytes,
    most: int,
    stop: Buffer,
    /,
) -> tuple[int, int, int, int, int]: ...
def add_pieces(
    arguments: Arguments,
    pieces: tuple[Buffer, ...],
    counts: Buffer,
    keeps: bytes,
    most: int,
    /,
) -> int: ...
def variants() -> list[tuple[int, str]]: ...
