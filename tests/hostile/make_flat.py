"""OLMo's files of two ranks put together by hand: a matrix and a vector in one row, of which each rank has a part."""

from __future__ import annotations

from pathlib import Path

from tests.hostile import make
from tests.hostile.make import call, data, mapping, name, number, numbers, pack, storage, tensor, text

FIRST, OTHER, STATE = "model/rank0.pt", "model/rank1.pt", "train/rank0.pt"
INFO = "torch.distributed.fsdp._flat_param._ShardParamInfo"
TRUE, FALSE, NONE = b"\x88", b"\x89", b"N"
SHAPES = {"w": (2, 3), "b": (3,)}
COUNT = 5  # of the elements that a rank has, with one of padding at the last
# Where the parameters lie in each rank's part: the first element there, how many, the first of the whole, the last.
PLACES = {0: {"w": (0, 5, 0, 4)}, 1: {"w": (0, 1, 5, 5), "b": (1, 3, 0, 2)}}


def size(*lengths: int) -> bytes:
    """Push a shape."""
    return call("torch.Size", numbers(*lengths))


def info(*place: int) -> bytes:
    """Push where a parameter lies; without numbers, that it lies at other ranks."""
    given = [number(each) for each in place]
    return name(INFO) + pack(*([TRUE, *given] if place else [FALSE, *[NONE] * 4])) + b"\x81"


def listed(*values: bytes) -> bytes:
    """Push a list."""
    return b"](" + b"".join(values) + b"e"


class Rank:
    """What the files of one rank hold."""

    def __init__(self, rank: int, step: int) -> None:
        self.rank = rank
        row = b"".join(data(step).values()) + bytes(4)
        self.stored = row[4 * COUNT * rank :][: 4 * COUNT]
        self.handle = {
            "data": tensor(storage("0", COUNT), shape=(COUNT,)),
            "_fqns": pack(*map(text, SHAPES)),
            "_shapes": pack(*(size(*shape) for shape in SHAPES.values())),
            "_shard_param_infos": pack(*(info(*PLACES[rank].get(label, ())) for label in SHAPES)),
        }
        self.module = text("")
        self.modules: bytes | None = None  # in place of the one with the handle
        self.more: dict[str, bytes] = {}
        self.state = {"global_step": number(step), "world_size": number(2)}

    def row(self) -> bytes:
        """Push the handle."""
        return mapping({f"flat_param.{key}": value for key, value in self.handle.items()})

    def write(self, path: Path) -> None:
        """Write the files."""
        module = mapping({"name": self.module, "handles": listed(self.row())})
        modules = listed(module) if self.modules is None else self.modules
        saved = make.whole(mapping({"modules": modules, "by": text("flat_param.data"), **self.more}))
        for inner, content in (("model", make.torch_zip(saved, {"0": self.stored})),
                               ("train", make.torch_zip(make.whole(mapping(self.state)), {}))):  # fmt: skip
            (path / inner).mkdir(parents=True, exist_ok=True)
            (path / inner / f"rank{self.rank}.pt").write_bytes(content)


class Folder:
    """A folder to be written."""

    def __init__(self, step: int = 3) -> None:
        self.ranks = [Rank(rank, step) for rank in (0, 1)]

    @property
    def first(self) -> Rank:
        """Return the first rank."""
        return self.ranks[0]

    def write(self, path: Path) -> None:
        """Write the files."""
        for rank in self.ranks:
            rank.write(path)
