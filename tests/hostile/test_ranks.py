"""Files of ranks: pickles with programs in them, descriptions of shares that lie, files that are none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.hostile.conftest import Case, FolderCases, Harness, Kind, parameters
from tests.hostile.make import ESCAPES, SHOWN, build, call, name, number, numbers, pack, storage, tensor, text
from tests.hostile.make_ranks import DTENSOR, FIRST, OTHER, SHAPES, Folder, mesh, placed, sharded, share, wrapped
from tests.hostile.programs import CREATE, ENDLESS, IDLE, PROGRAMS, endless, fifo

KIND = Kind("step-{}", lambda path, step: Folder(step).write(path))
CHANGED = FolderCases(Folder, FIRST)
folder, planted = CHANGED.folder, CHANGED.planted
WHOLE, STEP = numbers(2, 3), numbers(3)


def beside(made: Folder, value: bytes) -> None:
    """Plant a value beside the model."""
    made.ranks[0].more["hyper_parameters"] = value


def in_other(made: Folder, value: bytes) -> None:
    """Plant a value beside the model in the other rank's file."""
    made.ranks[1].more["hyper_parameters"] = value


def in_mesh(made: Folder, value: bytes) -> None:
    """Plant a value in a mesh."""
    rank = made.ranks[0]
    around = mesh(numbers(2), numbers(0), _dim_group_names=value)
    rank.values["w"] = share(WHOLE, rank.local("w"), around, placed(0))


def of(key: str, **parts: bytes) -> Callable[[Folder], None]:
    """Return a change of what the first rank says of its share."""

    def change(made: Folder) -> None:
        rank = made.ranks[0]
        given = {
            "shape": numbers(*SHAPES[key]),
            "local": rank.local(key),
            "around": rank.around,
            "placements": placed(0),
        }
        rank.values[key] = share(**{**given, **parts})

    return change


def value(key: str, pushed: bytes) -> Callable[[Folder], None]:
    """Return a change of what the first rank has under a name."""
    return lambda made: made.ranks[0].values.update({key: pushed})


def many_blocks(made: Folder) -> None:
    """Give a hundred thousand names to one tensor in many blocks."""
    kind = "torch.distributed.tensor.placement_types._StridedShard"
    one = share(numbers(1 << 40), tensor(storage("w", 3), shape=(3,)), made.ranks[0].around,
                placed(0, kind=kind, split_factor=number(4096)))  # fmt: skip
    made.ranks[0].values = {"w": one + b"q\x01", **{f"t{each}": b"h\x01" for each in range(100_000)}}


PROGRAM = call(CREATE, IDLE)
ROW = tensor(storage("w", 3), shape=(1, 3))
PLACES = {"the first rank": beside, "the other rank": in_other, "a mesh": in_mesh}
MESH, PLACEMENTS = "its mesh of ranks", "its placements"
CASES = [
    *(planted(f"{label}, in {where}", change, PROGRAMS[label])
      for label in PROGRAMS for where, change in PLACES.items()),
    *(planted(f"{label}, in {where}", change, lambda _, v=label: endless(v))
      for label in ENDLESS for where, change in PLACES.items()),
    *(replace(planted(f"a program in {where}", change, PROGRAMS["REDUCE"]), full=False)
      for where, change in PLACES.items()),
    folder("a mesh that is a program", of("w", around=PROGRAM), MESH, "w"),
    folder("a mesh without end", of("w", around=mesh(endless("2^60 paths"), numbers(0))), MESH, "w"),
    folder("a mesh of 2^80", of("w", around=mesh(numbers(1 << 80), numbers(0))), MESH, "w"),
    folder("a mesh of 2^40 ranks", of("w", around=mesh(numbers(1 << 40), numbers(0))), MESH, "w"),
    folder("a mesh of nobody", of("w", around=mesh(numbers(0), numbers(0))), MESH, "w"),
    folder("a place outside of the mesh", of("w", around=mesh(numbers(2), numbers(2))), PLACEMENTS, "w"),
    folder("a place of text", of("w", around=mesh(numbers(2), text("0"))), "place in the mesh", "w"),
    folder("a place of 2^80", of("w", around=mesh(numbers(2), numbers(1 << 80))), "place in the mesh", "w"),
    folder("a thousand dimensions of a mesh", of("w", around=mesh(numbers(*[1] * 1000), numbers(*[0] * 1000))), MESH,
        "w"),
    folder("no placements", of("w", placements=number(1)), "it has no placements", "w"),
    folder("placements that are programs", of("w", placements=pack(PROGRAM)), "its placement", "w"),
    folder("placements without end", of("w", placements=endless("2^60 paths")), "", "w"),
    folder("a placement of nothing", of("w", placements=pack(b"N")), "its placement is none", "w"),
    folder("a dimension that is not there", of("w", placements=placed(5)), PLACEMENTS, "w"),
    folder("a dimension of -1", of("w", placements=placed(-1)), "its placement", "w"),
    folder("2^40 blocks", of("w", placements=placed(0, kind="torch._StridedShard", split_factor=number(1 << 40))),
        PLACEMENTS, "w"),
    folder("no blocks", of("w", placements=placed(0, kind="torch._StridedShard", split_factor=number(0))), PLACEMENTS,
        "w"),
    folder("summands", of("w", placements=placed(0, kind="torch.Partial")), "summand", "w"),
    folder("an order that is none", of("w", shard_order=pack(build("torch.E", b"}"))), "order", "w"),
    folder("an order of itself", of("w", shard_order=pack(call("torch.E", number(0), numbers(0, 0)))), "order", "w"),
    folder("a shape that is a program", of("w", shape=PROGRAM), "no tuple of counts", "w"),
    folder("a shape of text", of("w", shape=text("2, 3")), "no tuple of counts", "w"),
    folder("negative sizes", of("w", shape=numbers(-2, -3)), "no tuple of counts", "w"),
    folder("a size of 2^70", of("w", shape=numbers(1 << 70)), "no tuple of counts", "w"),
    folder("2^122 elements", of("w", shape=numbers(1 << 61, 1 << 61)), "no tuple of counts", "w"),
    folder("65 dimensions", of("w", shape=numbers(*[1] * 65)), "no tuple of counts", "w"),
    folder("a share of another size", of("w", shape=numbers(200, 3)), "by its placements", "w"),
    folder("another shape at one rank", of("b", shape=numbers(4)), "at the ranks before", "b", file=OTHER),
    folder("a share that is a program", of("w", local=PROGRAM), "no plain tensor", "w"),
    folder("a share in a share", of("w", local=share(WHOLE, PROGRAM, PROGRAM, PROGRAM)), "no plain tensor", "w"),
    folder("a share past its storage", of("w", local=tensor(storage("w", 3), offset=1, shape=(1, 3))), "past the end",
        "w"),
    folder("a share of 2^40", of("w", shape=numbers(1 << 41), local=tensor(storage("w", 1 << 40), shape=(1 << 40,))),
        "bytes", "w"),
    folder("a share of single elements",
        of("w", shape=numbers(1 << 10, 1 << 10), around=mesh(numbers(1), numbers(0)),
           local=tensor(storage("w", 3), shape=(1 << 10, 1 << 10), strides=(0, 0))), "contiguous", "w"),
    folder("a share without a description", value("w", wrapped(DTENSOR, WHOLE, b"N")), "", "w"),
    folder("a share of no arguments", value("w", call("torch._tensor._rebuild_from_type_v2",
        name("torch._utils._rebuild_wrapper_subclass"), name(DTENSOR), pack(), b"N")), "its description", "w"),
    folder("a share of numbers", lambda made: made.both("b", number(3)), "", code=4, file=None, inspects=0),
    folder("shards that reach out", lambda made: made.both("w", sharded(WHOLE, ROW, numbers(9, 0), numbers(1, 3))),
        "reaches out of it", "w", file=None),
    folder("shards over each other", lambda made: made.both("w", sharded(WHOLE, ROW, numbers(0, 0), numbers(1, 3))),
        "do not cover it", "w", file=None),
    folder("shards of other sizes", value("w", sharded(WHOLE, ROW, numbers(0, 0), numbers(1, 2))), "one of its shards",
        "w"),
    folder("shards without end", value("w", wrapped("torch.ShardedTensor", WHOLE, endless("2^60 paths"))), "", "w"),
    folder("the other rank's share", of("w", around=mesh(numbers(2), numbers(1))), "do not cover it", "w", file=None),
    folder("another step in one rank", lambda made: made.ranks[1].more.update(step=number(4)), "was saved at 4ba",
        file=OTHER),
    folder("blocks without end", many_blocks, "", seconds=40),
    folder("a name that steers", value(ESCAPES, tensor(storage("b", 2), shape=(2,))), SHOWN, code=4, file=None,
        inspects=0),
    folder("a name of surrogates", value("\ud800", tensor(storage("w", 3), shape=(3,))), r"\ud800"),
    folder("a name of a megabyte", value("n" * 1_000_000, tensor(storage("w", 3), shape=(3,))), "characters"),
    Case(fifo(Folder(), FIRST), "", file=None, label="a FIFO for the first rank"),
    Case(fifo(Folder(), OTHER), "not a regular file", file=OTHER, label="a FIFO for the other rank"),
]  # fmt: skip


# One of each kind; the others are for `make test-full`.
QUICK = (
    *(f"a program in {where}" for where in PLACES), "a mesh without end", "a mesh of 2^80",
    "a place outside of the mesh", "placements that are programs", "placements without end",
    "a dimension that is not there", "2^40 blocks", "summands", "an order that is none",
    "a shape that is a program", "2^122 elements", "a share of another size",
    "a share that is a program", "a share past its storage", "a share of single elements", "a share of no arguments",
    "shards that reach out", "shards without end", "the other rank's share", "another step in one rank",
    "a FIFO for the other rank",
)  # fmt: skip
CASES = [replace(case, full=case.label not in QUICK) for case in CASES]


@pytest.mark.parametrize("case", parameters(CASES))
def test_hostile_ranks(case: Case, harness: Harness) -> None:
    """Nothing in the files of the ranks runs, lies unnoticed, or takes for ever."""
    harness.check(KIND, case)
