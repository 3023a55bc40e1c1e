"""DeepSpeed's universal format put together by hand, of a training in which two ranks share the rows of a matrix."""

from __future__ import annotations

from pathlib import Path

from tests.hostile.make import data, mapping, number, storage, tensor, torch_zip, whole
from tests.hostile.make_zero import size, table

FIRST, OTHER = "mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"
WEIGHT = "zero/w/fp32.pt"


def listed(*values: bytes) -> bytes:
    """Push a list."""
    return b"](" + b"".join(values) + b"e"


def by_number(*values: bytes) -> bytes:
    """Push a dict whose keys are numbers from 0 on."""
    return b"}(" + b"".join(number(key) + value for key, value in enumerate(values)) + b"u"


def block(rank: int, **more: bytes) -> bytes:
    """Push the one block that a rank has of w."""
    strides = listed(number(3), number(1))
    known = {"shape": listed(number(1), number(3)), "source": listed(number(3 * rank), strides),
             "dest": listed(number(0), strides)}  # fmt: skip
    return mapping({**known, **more})


def of_rank(rank: int, **more: bytes) -> bytes:
    """Push what a map says of a rank."""
    return mapping({"shard_shape": listed(number(1), number(3)), "pieces": listed(block(rank)), **more})


class Folder:
    """A folder to be written."""

    def __init__(self, step: int = 3) -> None:
        self.step = step
        self.map = {"logical_shape": listed(number(2), number(3)), "ranks": by_number(of_rank(0), of_rank(1))}
        self.maps: bytes | None = None  # in place of those with this one
        self.files = {"w": {"param": tensor()}, "b": {"param": tensor(shape=(3,), stored=storage("0", 3))}}
        self.whole: dict[str, bytes] = {}  # in place of what a file holds
        self.more: dict[str, bytes] = {}

    def model(self, rank: int) -> bytes:
        """Return the model states of a rank."""
        maps = mapping({"^w$": mapping(self.map)}) if self.maps is None else self.maps
        saved = {
            "module": mapping({"w": tensor(storage("0", 3), shape=(1, 3)), "b": tensor(storage("1", 3), shape=(3,))}),
            "buffer_names": b"]", "param_shapes": table({"w": size(1, 3), "b": size(3)}),
            "global_steps": number(self.step), "mp_world_size": number(2),
            "universal_checkpoint_info": mapping({"affine_map": mapping({"version": number(1), "params": maps})}),
            **self.more,
        }  # fmt: skip
        w, b = data(self.step).values()
        return torch_zip(whole(mapping(saved)), {"0": w[12 * rank :][:12], "1": b})

    def write(self, path: Path) -> None:
        """Write the files."""
        for (label, held), content in zip(self.files.items(), data(self.step).values(), strict=True):
            (path / "zero" / label).mkdir(parents=True)
            saved = whole(self.whole.get(label, mapping(held)))
            (path / "zero" / label / "fp32.pt").write_bytes(torch_zip(saved, {"0": content}))
        for rank, name in enumerate((FIRST, OTHER)):
            (path / name).write_bytes(self.model(rank))
