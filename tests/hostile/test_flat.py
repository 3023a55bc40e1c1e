"""OLMo's local sharded checkpoints: pickles with programs in them, tables of rows that lie, files that are none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.hostile.conftest import Case, FolderCases, Harness, Kind, parameters
from tests.hostile.make import ESCAPES, SHOWN, call, mapping, number, numbers, pack, storage, tensor, text
from tests.hostile.make_flat import FIRST, OTHER, PLACES, STATE, Folder, info, listed, size
from tests.hostile.programs import CREATE, ENDLESS, IDLE, PROGRAMS, endless, fifo

KIND = Kind("step{}", lambda path, step: Folder(step).write(path))
CHANGED = FolderCases(Folder, FIRST)
folder, planted = CHANGED.folder, CHANGED.planted


def beside(made: Folder, value: bytes) -> None:
    """Plant a value beside the modules."""
    made.first.more["args"] = value


def in_handle(made: Folder, value: bytes) -> None:
    """Plant a value in the other rank's handle."""
    made.ranks[1].handle["_param_infos"] = value


def in_state(made: Folder, value: bytes) -> None:
    """Plant a value in the trainer's state."""
    made.first.state["args"] = value


def of(**tables: bytes) -> Callable[[Folder], None]:
    """Return a change of what the first rank says of its row."""
    return lambda made: made.first.handle.update({key if key == "data" else f"_{key}": v for key, v in tables.items()})


def places(*first: int) -> Callable[[Folder], None]:
    """Return a change of where the first rank has the first parameter."""
    return of(shard_param_infos=pack(info(*first), info()))


def modules(value: bytes) -> Callable[[Folder], None]:
    """Return a change of what the first rank has for its modules."""
    return lambda made: setattr(made.first, "modules", value)


def repeated(made: Folder) -> None:
    """Repeat one row of a hundred thousand parameters a hundred thousand times."""
    made.first.handle["_fqns"] = b"(" + b"".join(text(f"p{each}") for each in range(100_000)) + b"t"
    made.first.handle["_shapes"] = b"(" + size(0) + b"q\x01" + b"h\x01" * 99_999 + b"t"
    made.first.handle["_shard_param_infos"] = b"(" + info() + b"q\x02" + b"h\x02" * 99_999 + b"t"
    handles = b"](" + made.first.row() + b"q\x03" + b"h\x03" * 99_999 + b"e"
    made.first.modules = listed(mapping({"name": text(""), "handles": handles}))


def long_names(made: Folder) -> None:
    """Give a module with a name of a megabyte a hundred thousand times."""
    module = mapping({"name": text("_fsdp_wrapped_module." * 50_000), "handles": listed(made.first.row())})
    made.first.modules = b"](" + module + b"q\x01" + b"h\x01" * 99_999 + b"e"


def other_row(made: Folder) -> None:
    """Put the row into a second module of the same name, behind one that has no parameters."""
    none = {**made.first.handle, "_fqns": pack(), "_shapes": pack(), "_shard_param_infos": pack()}
    empty = mapping({f"flat_param.{key}": value for key, value in none.items()})
    handles = (made.first.row(), empty)
    made.first.modules = listed(*(mapping({"name": text(""), "handles": listed(each)}) for each in handles))


PROGRAM = call(CREATE, IDLE)
NO_TABLE, NO_PLACE = "of which parameters", "which elements of its parameters"
SPOTS = {"the first rank": beside, "a handle": in_handle, "the trainer's state": in_state}
CASES = [
    *(planted(f"{label}, in {where}", change, PROGRAMS[label])
      for label in PROGRAMS for where, change in SPOTS.items()),
    *(planted(f"{label}, in {where}", change, lambda _, v=label: endless(v))
      for label in ENDLESS for where, change in SPOTS.items()),
    *(replace(planted(f"a program in {where}", change, PROGRAMS["REDUCE"]), full=False)
      for where, change in SPOTS.items()),
    folder("names that are programs", of(fqns=pack(PROGRAM, PROGRAM)), NO_TABLE),
    folder("names without end", of(fqns=endless("2^60 paths")), NO_TABLE),
    folder("a name that is a number", of(fqns=numbers(1, 2)), NO_TABLE),
    folder("shapes that are programs", of(shapes=pack(PROGRAM, PROGRAM)), NO_TABLE),
    folder("shapes without end", of(shapes=pack(endless("2^60 paths"), size(3))), NO_TABLE),
    folder("negative sizes", of(shapes=pack(size(-2, -3), size(3))), NO_TABLE),
    folder("a size of 2^70", of(shapes=pack(size(1 << 70), size(3))), NO_TABLE),
    folder("2^122 elements", of(shapes=pack(size(1 << 61, 1 << 61), size(3))), NO_TABLE),
    folder("65 dimensions", of(shapes=pack(size(*[1] * 65), size(3))), NO_TABLE),
    folder("places that are programs", of(shard_param_infos=pack(PROGRAM, PROGRAM)), NO_PLACE),
    folder("places without end", of(shard_param_infos=pack(endless("2^60 paths"), info())), NO_PLACE),
    folder("places of another class", of(shard_param_infos=pack(pack(b"\x88", *map(number, PLACES[0]["w"])), info())),
        NO_PLACE),
    folder("a place behind the row", places(1 << 61, 5, 0, 4), "is said to lie in row 0", "w"),
    folder("a place of 2^80", places(1 << 80, 5, 0, 4), NO_PLACE),
    folder("a place below the row", places(-1, 5, 0, 4), NO_PLACE),
    folder("more elements than it has", places(0, 6, 0, 5), "is said to lie in row 0", "w"),
    folder("elements twice", places(0, 5, 1, 5), "overlap", "w", file=None),
    folder("elements behind the end", places(0, 5, 4, 8), "", "w", file=None),
    folder("old places of 2^70", of(shard_param_infos=b"N", shard_indices=numbers(0, 0),
                                    shard_param_offsets=pack(numbers(0, 1 << 70))), NO_PLACE),
    folder("old places of programs", of(
        shard_param_infos=b"N", shard_indices=PROGRAM, shard_param_offsets=pack(PROGRAM)), NO_PLACE),
    folder("a row that is a program", of(data=PROGRAM), "are no tensor"),
    folder("a row past its storage", of(data=tensor(storage("0", 5), shape=(6,))), "past the end"),
    folder("a row of 2^40", of(data=tensor(storage("0", 1 << 40), shape=(1 << 40,))), "bytes"),
    folder("a row that is expanded", of(data=tensor(storage("0", 5), shape=(5,), strides=(0,))), "is said to lie in"),
    folder("a row of whole numbers", of(data=tensor(storage("0", 5, "torch.IntStorage"), shape=(5,))),
        "at the ranks before", "w", file=OTHER),
    folder("modules that are programs", modules(PROGRAM), "", file=None),
    folder("modules without end", modules(endless("2^60 paths")), "", file=None),
    folder("no modules", modules(b"]"), "", file=None),
    folder("handles that are a program", modules(listed(mapping({"name": text(""), "handles": PROGRAM}))), "FSDP's"),
    folder("a row again and again", repeated, "is in two rows", seconds=40),
    folder("a module again and again", long_names, "FSDP's"),
    folder("two modules of one name", other_row, code=0, file=None),
    folder("a name that steers", lambda made: setattr(made.first, "module", text(ESCAPES)), SHOWN, file=None),
    folder("a name of surrogates", of(fqns=pack(text("\ud800"), text("b"))), r"\ud800"),
    folder("a name of a megabyte", of(fqns=pack(text("n" * 1_000_000), text("b"))), "characters"),
    folder("safetensors' own name", of(fqns=pack(text("__metadata__"), text("b"))), "keeps for itself"),
    folder("2^80 ranks", lambda made: made.first.state.update(world_size=number(1 << 80)), "was saved by 2 ranks",
        file="train/rank1.pt", code=0),
    folder("a million ranks", lambda made: made.first.state.update(world_size=number(1_000_000)), "by 2 ranks",
        file="train/rank1.pt"),
    folder("no ranks", lambda made: made.first.state.update(world_size=number(0)), code=0, file=None),
    folder("another step in one rank", lambda made: made.ranks[1].state.update(global_step=number(4)),
        "was saved at 4ba", file="train/rank1.pt"),
    Case(fifo(Folder(), FIRST), "", file=None, label="a FIFO for the first rank"),
    Case(fifo(Folder(), STATE), "not a regular file", file=STATE, label="a FIFO for the trainer's state"),
]  # fmt: skip


# One of each kind; the others are for `make test-full`.
QUICK = (
    "a program in the trainer's state", "names without end", "shapes that are programs", "2^122 elements",
    "places without end", "a place behind the row", "elements twice", "a row that is a program",
    "a row past its storage", "a row again and again", "a module again and again", "two modules of one name",
    "a million ranks",
)  # fmt: skip
CASES = [replace(case, full=case.label not in QUICK) for case in CASES]


@pytest.mark.parametrize("case", parameters(CASES))
def test_hostile_rows(case: Case, harness: Harness) -> None:
    """Nothing in the files of the ranks runs, lies unnoticed, or takes for ever."""
    harness.check(KIND, case)
