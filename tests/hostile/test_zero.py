"""Folders of DeepSpeed's ZeRO: pickles with programs in them, tables that lie, files that are none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.hostile.conftest import Case, FolderCases, Harness, Kind, parameters
from tests.hostile.make import ESCAPES, SHOWN, call, mapping, number, storage, tensor, text
from tests.hostile.make_zero import FIRST, FLAT, OTHER, OTHER_FLAT, Folder, named, size, table
from tests.hostile.programs import CREATE, ENDLESS, IDLE, PROGRAMS, UNREADABLE, endless, fifo

KIND = Kind("global_step{}", lambda path, step: Folder(step).write(path))
CHANGED = FolderCases(Folder, FIRST)
folder, planted = CHANGED.folder, CHANGED.planted


def in_model(made: Folder, value: bytes) -> None:
    """Plant a value in the model states."""
    made.both("ds_config", value)


def in_optimizer(made: Folder, value: bytes) -> None:
    """Plant a value beside the weights, where DeepSpeed pickles its loss scaler."""
    made.states["loss_scaler"] = value


def in_file(made: Folder, value: bytes) -> None:
    """Plant a value beside the optimizer's states."""
    made.more["ds_config"] = value


def shapes(entries: dict[str, bytes]) -> Callable[[Folder], None]:
    """Return a change of the tables of both ranks."""
    return lambda made: made.both("param_shapes", table(entries))


def frozen(shape: bytes, fragment: bytes) -> Callable[[Folder], None]:
    """Return a change by which a parameter does not train."""

    def change(made: Folder) -> None:
        made.both("frozen_param_shapes", mapping({"f": shape}))
        made.both("frozen_param_fragments", mapping({"f": fragment}))

    return change


def flat(*values: bytes) -> Callable[[Folder], None]:
    """Return a change of the flattened weights of both ranks."""
    return lambda made: setattr(made, "flat", b"](" + b"".join(values) + b"e")


def many_tied(made: Folder) -> None:
    """Give a hundred thousand names more to a parameter that is not there."""
    made.both("shared_params", mapping({f"t{each}": text("x") for each in range(100_000)}))


def too_many(made: Folder) -> None:
    """Name more parameters than any model has, all of nothing."""
    nothing = size(0)
    made.both("param_shapes", table({f"t{each}": nothing for each in range(600_000)}))


PROGRAM = call(CREATE, IDLE)
PLACES = {"model states": in_model, "optimizer states": in_optimizer, "optimizer's file": in_file}
NO_SHAPE = "has no shape in 'param_shapes'"
NO_TABLE = "no such table as DeepSpeed writes"
CASES = [
    *(planted(f"{label}, {where}", change, PROGRAMS[label]) for label in PROGRAMS for where, change in PLACES.items()),
    *(planted(f"{label}, {where}", change, lambda _, v=label: endless(v))
      for label in ENDLESS for where, change in PLACES.items()),
    *(replace(planted(f"a program in the {where}", change, PROGRAMS["REDUCE"]), full=False)
      for where, change in PLACES.items()),
    *(folder(label, lambda made, make=make: made.states.update(x=make()), says, file=FLAT)
      for label, (make, says) in UNREADABLE.items() if label in ("a persistent number", "bytes of 2^62")),
    folder("a shape that is a program", shapes(named("w", PROGRAM)), NO_SHAPE, "w"),
    folder("a shape of text", shapes(named("w", text("2, 3"))), NO_SHAPE, "w"),
    folder("negative sizes", shapes(named("w", size(-2, -3))), NO_SHAPE, "w"),
    folder("65 dimensions", shapes(named("w", size(*[1] * 65))), NO_SHAPE, "w"),
    folder("a size of 2^70", shapes(named("w", size(1 << 70))), NO_SHAPE, "w"),
    folder("2^124 elements", shapes(named("w", size(1 << 61, 1 << 61))), "more elements than any file holds", "w"),
    folder("2^40 elements", shapes(named("w", size(1 << 40))), "its weights end before 'w' does", "w", file=FLAT),
    folder("fewer elements", shapes(named("w", size(1, 3))), "and the model states list", file=FLAT),
    folder("a parameter of both tables", frozen(size(3), tensor(storage("0", 0), shape=(0,))), "the fragments of 'f'",
        "f"),
    folder("a fragment of a program", frozen(size(1), PROGRAM), "not a tensor", "f"),
    folder("a fragment of nothing", frozen(size(1 << 40), tensor(storage("0", 0), shape=(0,))), "the fragments of 'f'",
        "f"),
    folder("no list of tables", lambda made: made.both("param_shapes", number(3)), "has no 'param_shapes'"),
    folder("a table that is a list", lambda made: made.both("param_shapes", b"](]e"), NO_TABLE),
    folder("names that are numbers", lambda made: made.both("param_shapes", b"](}(K\x01K\x02ue"), NO_TABLE),
    folder("tied names of numbers", lambda made: made.both("shared_params", b"}(" + text("w") + b"K\x02u"), NO_TABLE),
    folder("tied without end", lambda made: made.both("shared_params", endless("2^60 paths")), NO_TABLE),
    folder("tied to itself", lambda made: made.both("shared_params", mapping({"w": text("w")})), code=0, file=None),
    folder("tied in a circle", lambda made: made.both("shared_params", mapping({"w": text("b"), "b": text("w")})),
        "is F32 [3], but", code=4, file=None, inspects=0),
    folder("a hundred thousand tied names", many_tied, code=0, file=None),
    folder("more names than any model has", too_many, "at most", seconds=40),
    folder("a name that steers", shapes(named(ESCAPES, size(0))), SHOWN, code=4, file=None, inspects=0),
    folder("a name of surrogates", shapes(named("\ud800", size(0))), r"\ud800"),
    folder("a name of a megabyte", shapes(named("n" * 1_000_000, size(0))), "characters"),
    folder("safetensors' own name", shapes(named("__metadata__", size(0))), "keeps for itself"),
    folder("a million ranks", lambda made: made.both("dp_world_size", number(1_000_000)), "999,998 ranks",
        file=None, passed=True),
    folder("2^80 ranks", lambda made: made.both("dp_world_size", number(1 << 80)), "of 1208925819614629174706176",
        file=None, passed=True),
    folder("no ranks", lambda made: made.both("dp_world_size", number(0)), "is of rank 0", file=FIRST),
    folder("partitions of 2^80", lambda made: made.states.update(partition_count=number(1 << 80)),
        "does not say into how many parts", file=FLAT),
    folder("partitions without end", lambda made: made.states.update(partition_count=endless("2^60 paths")),
        "does not say into how many parts", file=FLAT),
    folder("another step in one rank", lambda made: made.other.update(global_steps=number(4)), "its global_steps is 4",
        file=OTHER),
    folder("no weights", lambda made: made.more.update(optimizer_state_dict=b"}"), "holds no flattened", file=FLAT),
    folder("weights of a program", flat(PROGRAM), "not a tensor", file=FLAT),
    folder("weights that are expanded", flat(tensor(storage("0", 5), shape=(5,), strides=(0,))), "lie in order",
        file=FLAT),
    folder("weights past their storage", flat(tensor(storage("0", 5), shape=(6,))), "past the end", file=FLAT),
    folder("weights of 2^40", flat(tensor(storage("0", 1 << 40), shape=(1 << 40,))), "bytes", file=FLAT),
    folder("weights of whole numbers", flat(tensor(storage("0", 5, "torch.IntStorage"), shape=(5,))), "its weights are",
        file=FLAT),
    folder("a matrix of weights", flat(tensor(storage("0", 5), shape=(5, 1))), code=0, file=None),
    folder("alignment without end", lambda made: made.states.update(param_alignment_paddings=endless("2^60 paths")),
        code=0, file=None),
    folder("a part that lies", lambda made: made.stored.__setitem__(1, bytes(16)), "bytes", file=OTHER_FLAT),
    Case(fifo(Folder(), FIRST), "not a regular file", file=FIRST, label="a FIFO for model states"),
    Case(fifo(Folder(), FLAT), "not a regular file", file=FLAT, label="a FIFO for optimizer states"),
]  # fmt: skip


@pytest.mark.parametrize("case", parameters(CASES))
def test_hostile_partitions(case: Case, harness: Harness) -> None:
    """Nothing in the files of the ranks runs, lies unnoticed, or takes for ever."""
    harness.check(KIND, case)
