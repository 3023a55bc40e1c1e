"""Float32 weights of an optimizer in folders of torch.distributed.checkpoint: those that lie, or belong to nobody."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.hostile.conftest import Case, FolderCases, Harness, Kind, parameters
from tests.hostile.make import build, call, data, storage, tensor, text
from tests.hostile.make_dcp import METADATA, SHARD, Folder, described, placed
from tests.hostile.programs import CREATE, IDLE, PROGRAMS, endless

MASTER = "optimizer.state.param."
NOTHING = build(f"{METADATA}.BytesStorageMetadata", b"}")  # how what is no tensor is described
LOST = f"'{MASTER}w', by its name the float32 weights of 'w', is not described as a tensor"


class Saved(Folder):
    """What Megatron saves: a model, and its weights in float32."""

    def __init__(self, step: int = 3) -> None:
        super().__init__(step)
        for (label, shape), key in zip({"w": (2, 3), "b": (3,)}.items(), "01", strict=True):
            self.master(label, shape, data(step)[key])

    def master(self, label: str, shape: tuple[int, ...], content: bytes, record: bytes = b"") -> None:
        """Add the float32 weights of a tensor."""
        record = record or self.record(tensor(storage("0", len(content) // 4), shape=shape), content)
        self.tensor(f"{MASTER}{label}", record, described(size=shape), (0,) * len(shape))


KIND = Kind("iter_{}", lambda path, step: Saved(step).write(path), ("--half-life", "1ba", "--masters"))
CHANGED = FolderCases(Saved, ".metadata")
folder = CHANGED.folder


def stored(value: bytes) -> Callable[[Saved], None]:
    """Return a change of what is stored of the float32 weights of w."""

    def change(made: Saved) -> None:
        made.places.pop()
        made.places.pop()
        made.master("w", (2, 3), data(3)["0"], made.record(value, data(3)["0"]))
        made.master("b", (3,), data(3)["1"])

    return change


def entry(value: bytes, name: str = "w") -> Callable[[Saved], None]:
    """Return a change of how the float32 weights are described."""
    return lambda made: made.entries.update({f"{MASTER}{name}": value})


def listed(made: Saved) -> None:
    """List the float32 weights of w as something that is no tensor, of which nothing is stored."""
    del made.places[3]
    entry(NOTHING)(made)


def program(label: str) -> Callable[[Path, Path], None]:
    """Return a builder of a folder in which a program stands for the description of weights."""

    def write(path: Path, canary: Path) -> None:
        made = Saved()
        entry(PROGRAMS[label](canary))(made)
        made.write(path)

    return write


CASES = [
    folder("weights that are a program", stored(call(CREATE, IDLE)), "", f"{MASTER}w", file=SHARD, inspects=0),
    folder("weights without end", stored(endless("2^60 paths")), "", f"{MASTER}w", file=SHARD, inspects=0),
    folder("weights of another shape", entry(described(size=(3, 2))), "which of its elements is which",
        file=None, inspects=0),
    folder("weights of 2^40", entry(described(size=(1 << 40,))), "", file=None, inspects=0),
    folder("weights of whole numbers", entry(described(dtype="torch.int32")), "not the weights in float32", file=None,
        inspects=0),
    folder("weights of a dtype that is a program", entry(described(dtype="tests.hostile.stand_ins.create")), "dtype",
        file=None, inspects=0),
    folder("a description that is a program", entry(call(CREATE, IDLE)), ""),
    folder("weights of nobody", lambda made: made.master("x", (3,), data(3)["1"]), code=0, file=None),
    folder("weights twice", lambda made: made.tensor("chained_0.optimizer.state.fp32_param.w",
        made.record(tensor(), data(3)["0"]), described(), (0, 0)), "has two float32 weights", file=None,
        inspects=0),
    folder("weights in another file", lambda made: made.places.__setitem__(
        3, (made.places[3][0], placed(0, 100, text("../iter_1/" + SHARD)))), "is not a file name"),
    folder("weights that are described as nothing", entry(NOTHING), LOST, inspects=0),
    folder("weights that are described nowhere", lambda made: made.entries.pop(f"{MASTER}w"), LOST, inspects=0),
    folder("weights that are listed and nowhere stored", listed, LOST, inspects=0),
    # What one of them leaves describes nothing, as of what is no tensor: only --masters looks for it.
    *(Case(program(label), file=".metadata", label=f"{label}, for weights", inspects=0 if label == "BUILD" else None)
      for label in PROGRAMS),
]  # fmt: skip
QUICK = (
    "weights that are described as nothing",
    "weights that are a program",
    "weights of another shape",
    "weights twice",
)
CASES = [replace(case, full=case.label not in QUICK) for case in CASES]


@pytest.mark.parametrize("case", parameters(CASES))
def test_hostile_masters(case: Case, harness: Harness) -> None:
    """What lies in the optimizer's part is believed no more than what lies in the model's."""
    harness.check(KIND, case)
