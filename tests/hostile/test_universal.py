"""DeepSpeed's universal format of ranks that cut tensors: maps that lie, files of parameters that are programs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.hostile.conftest import Case, FolderCases, Harness, Kind, parameters
from tests.hostile.make import ESCAPES, SHOWN, call, mapping, number, numbers, storage, tensor, text
from tests.hostile.make_universal import FIRST, OTHER, WEIGHT, Folder, block, by_number, listed, of_rank
from tests.hostile.make_zero import size, table
from tests.hostile.programs import CREATE, ENDLESS, IDLE, PROGRAMS, endless, fifo

KIND = Kind("global_step{}", lambda path, step: Folder(step).write(path))
CHANGED = FolderCases(Folder, WEIGHT)
folder, planted = CHANGED.folder, CHANGED.planted


def in_model(made: Folder, value: bytes) -> None:
    """Plant a value in the model states."""
    made.more["ds_config"] = value


def in_file(made: Folder, value: bytes) -> None:
    """Plant a value beside a parameter."""
    made.files["w"]["step"] = value


def in_map(made: Folder, value: bytes) -> None:
    """Plant a value in a map."""
    made.map["version"] = value


def believed(label: str, **said: bytes) -> Case:
    """Return a case of a map that lies: it is not believed, and what is averaged needs none."""
    return folder(f"a map with {label}", lambda made: made.map.update(said), code=0, file=None)


def maps(label: str, value: bytes) -> Case:
    """Return a case of other maps, which are not believed either."""
    return folder(label, lambda made: setattr(made, "maps", value), code=0, file=None)


def piece(label: str, **said: bytes) -> Case:
    """Return a case of a block that lies."""
    return believed(label, ranks=by_number(of_rank(0, pieces=listed(block(0, **said))), of_rank(1)))


def param(label: str, value: bytes, says: str, **more: object) -> Case:
    """Return a case of what lies in the place of a parameter."""
    return folder(label, lambda made: made.files["w"].update(param=value), says, **more)  # type: ignore[arg-type]


def many_pieces(made: Folder) -> None:
    """Say of a rank that it has the same block a hundred thousand times, each time a hundred thousand ranks."""
    pieces = b"](" + block(0) + b"q\x01" + b"h\x01" * 99_999 + b"e"
    ranks = b"}(" + number(0) + of_rank(0, pieces=pieces) + b"q\x02"
    made.map["ranks"] = ranks + b"".join(number(each) + b"h\x02" for each in range(1, 100_000)) + b"u"


PROGRAM = call(CREATE, IDLE)
SPOTS = {"model states": in_model, "a parameter's file": in_file, "a map": in_map}
STRIDES = listed(number(3), number(1))
CASES = [
    *(planted(f"{label}, in {where}", change, PROGRAMS[label])
      for label in PROGRAMS for where, change in SPOTS.items()),
    *(planted(f"{label}, in {where}", change, lambda _, v=label: endless(v))
      for label in ENDLESS for where, change in SPOTS.items()),
    *(replace(planted(f"a program in {where}", change, PROGRAMS["REDUCE"]), full=False)
      for where, change in SPOTS.items()),
    maps("maps that are programs", PROGRAM),
    maps("maps without end", endless("2^60 paths through dicts")),
    maps("a map that is a program", mapping({"^w$": PROGRAM})),
    maps("a pattern that takes for ever", mapping({"^(w+)+$": mapping({"logical_shape": numbers(2, 3)})})),
    believed("a shape that is a program", logical_shape=PROGRAM),
    believed("a shape without end", logical_shape=endless("2^60 paths")),
    believed("a size of 2^80", logical_shape=listed(number(1 << 80), number(3))),
    believed("another shape", logical_shape=listed(number(3), number(3))),
    believed("ranks that are a program", ranks=PROGRAM),
    believed("a rank that is a program", ranks=by_number(PROGRAM, of_rank(1))),
    believed("three ranks", ranks=by_number(of_rank(0), of_rank(1), of_rank(1))),
    believed("pieces that are a program", ranks=by_number(of_rank(0, pieces=PROGRAM), of_rank(1))),
    believed("pieces without end", ranks=by_number(of_rank(0, pieces=endless("2^60 paths")), of_rank(1))),
    folder("a map of a hundred thousand ranks", many_pieces, code=0, file=None),
    piece("a block of 2^80", shape=listed(number(1 << 80), number(3))),
    piece("a block behind the tensor", source=listed(number(1 << 60), STRIDES)),
    piece("a block behind its part", dest=listed(number(1 << 60), STRIDES)),
    piece("strides of nothing", source=listed(number(0), listed(number(0), number(0)))),
    piece("a scale that is a program", scale=PROGRAM),
    param("a parameter that is a program", PROGRAM, "holds no tensor"),
    param("a parameter without end", endless("2^60 paths"), "holds no tensor"),
    param("a parameter past its storage", tensor(offset=3), "past the end", tensor="w"),
    param("a parameter of 2^40", tensor(storage("0", 1 << 40), shape=(1 << 40,)), "bytes"),
    param("a parameter that is expanded", tensor(strides=(0, 1)), "does not lie in order", tensor="w"),
    param("a parameter of another shape", tensor(shape=(3, 2)), "is F32 [3, 2], but", code=4, file=None, inspects=0),
    param("a parameter of whole numbers", tensor(storage("0", 6, "torch.IntStorage")), "is I32", code=4, file=None,
          inspects=0),
    folder("a file that is a program", lambda made: made.whole.update(w=PROGRAM), "holds no tensor"),
    folder("a file without end", lambda made: made.whole.update(w=endless("2^60 paths")), "holds no tensor"),
    folder("a dimension of 2^80", lambda made: (made.map.clear(), made.files["w"].update(cat_dim=number(1 << 80))),
        code=0, file=None),
    folder("a dimension that is a program", lambda made: (made.map.clear(), made.files["w"].update(cat_dim=PROGRAM)),
        code=0, file=None),
    folder("2^80 within", lambda made: (made.map.clear(), made.files["w"].update(
        cat_dim=number(0), param_n_sub_params=number(1 << 80))), code=0, file=None),
    folder("shapes of a program", lambda made: made.more.update(param_shapes=PROGRAM), "has no 'param_shapes'",
        file=FIRST),
    folder("a name that steers", lambda made: made.more.update(param_shapes=table({ESCAPES: size(1)})), SHOWN,
        file=None, passed=True),
    folder("a name that leads elsewhere", lambda made: made.more.update(
        param_shapes=table({"w": size(1, 3), "b": size(3), "../../global_step1/zero/w": size(1, 3)})),
        "holds no zero/", file=None, passed=True),
    folder("2^80 ranks", lambda made: made.more.update(mp_world_size=number(1 << 80)), "of 1208925819614629174706176",
        file=None, passed=True),
    folder("experts that are a program", lambda made: made.more.update(ds_autoep_layers=PROGRAM), "experts",
        file=None),
    folder("tied without end", lambda made: made.more.update(shared_params=endless("2^60 paths")), "no such table",
        file=FIRST),
    folder("text for a model", lambda made: made.more.update(module=text("x")), "holds no tensor", file=FIRST),
    Case(fifo(Folder(), OTHER), "not a regular file", file=OTHER, label="a FIFO for model states"),
    Case(fifo(Folder(), WEIGHT), "not a regular file", file=WEIGHT, label="a FIFO for a parameter"),
]  # fmt: skip


# One of each kind; the others are for `make test-full`.
QUICK = (
    "a program in a parameter's file", "maps without end", "a pattern that takes for ever",
    "a map of a hundred thousand ranks", "a map with a block of 2^80", "a parameter that is a program",
    "a parameter past its storage", "a parameter of another shape", "2^80 within", "a name that leads elsewhere",
)  # fmt: skip
CASES = [replace(case, full=case.label not in QUICK) for case in CASES]


@pytest.mark.parametrize("case", parameters(CASES))
def test_hostile_maps(case: Case, harness: Harness) -> None:
    """Nothing in the files runs, lies unnoticed, leads out of the folder, or takes for ever."""
    harness.check(KIND, case)
