"""Read an item of Orbax's: the tree of its arrays, without those of an optimizer, and the headers of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ema_cli.checkpoint import MAX_TENSORS
from ema_cli.dataclass import dataclass
from ema_cli.errors import CheckpointError, IncompleteCheckpoint
from ema_cli.formats.arrays.inflating import JoinedSources
from ema_cli.formats.arrays.kvstores import NOTE
from ema_cli.formats.arrays.numpy_types import describe
from ema_cli.formats.arrays.trees import model_in_tree
from ema_cli.formats.arrays.zarr import Store, load_tensorstore, note_of, open_arrays
from ema_cli.formats.json_text import read_json
from ema_cli.formats.shards import is_plain_name
from ema_cli.formats.torch_save.archive import Span
from ema_cli.formats.torch_save.content import TorchFile, locate_in
from ema_cli.formats.trainers.layouts import OPTIMIZERS
from ema_cli.storage.location import location, open_for_others, walk
from ema_cli.storage.names import StorePath
from ema_cli.storage.source import InputFile

_MANIFEST = "manifest.ocdbt"
_MAX_TREE_BYTES = 256 << 20
_ARRAYS = ("jax.Array", "np.ndarray", "scalar")
_NO_ARRAYS = ("string", "placeholder", "None", "Dict", "List", "Tuple", "NamedTuple")  # the latter where they are empty
_PARAMS = "params"
_MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class Item:
    """An item that is open: what it holds, its files, and what a user should know of how it is stored."""

    content: TorchFile
    files: tuple[InputFile, ...]
    notes: tuple[str, ...]


def open_item(folder: Path, tree: InputFile) -> Item:
    """Read the `tree` of the arrays in the folder of an item, and the headers of those of its model.

    Raises:
        UsageError: where tensorstore is not installed.
        IncompleteCheckpoint: where a file that belongs to it is missing.
        CheckpointError: for what is damaged, and for blocks that do not fit into memory.
    """
    load_tensorstore(folder)
    about = read_json(tree, _MAX_TREE_BYTES, constants=True)
    entries = about.get("tree_metadata") if isinstance(about, dict) else None
    if not isinstance(entries, dict) or len(entries) > 8 * MAX_TENSORS:
        raise CheckpointError("has no tree of arrays", subject=tree.path)
    in_ocdbt = about.get("use_ocdbt") is not False
    if in_ocdbt and not location(folder / _MANIFEST).info().is_file:
        raise IncompleteCheckpoint(f"has no {_MANIFEST}, which is written last", subject=folder)
    stored = [entry.path for entry in walk(folder) if entry.is_file and entry.path != tree.path]
    files = (tree, *(open_for_others(path) for path in sorted(stored)))
    keeps_all = about.get("store_array_data_equal_to_fill_value") is True
    driver = "zarr3" if about.get("use_zarr3") is True else "zarr"
    store = Store(folder.absolute(), driver, in_ocdbt, not keeps_all)
    root: dict[str, Any] = {}
    names = _plant(root, entries, store, tree.path)
    arrays = open_arrays(names, store, tree.path, sum(file.size for file in files))
    source = JoinedSources.of(tree.path, list(arrays.values()))
    spans: dict[str, Span] = {
        name: (start, array.size) for (name, array), start in zip(arrays.items(), source.starts, strict=True)
    }

    for name, (around, key) in names.items():
        around[key] = describe(name, arrays[name].dtype, arrays[name].shape)
    notes = (*note_of(arrays.values()), *((NOTE,) if isinstance(folder, StorePath) else ()))
    return Item(TorchFile(source, model_in_tree(root), locate_in(spans)), files, notes)


def _plant(
    root: dict[str, Any], entries: Mapping[str, Any], store: Store, path: Path
) -> dict[str, tuple[dict[str, Any], str]]:
    """Put a dict into `root` for each branch of the tree; return where each array belongs, by its name in the store.

    What is an optimizer's is left out: in its place stands a word.

    Raises:
        CheckpointError: for a tree that cannot be one.
    """
    places: dict[str, tuple[dict[str, Any], str]] = {}
    for entry in entries.values():
        keys = _keys(entry)
        if not keys or len(keys) > _MAX_DEPTH:
            raise CheckpointError("the tree of its arrays is damaged", subject=path)
        kind = _kind(entry)
        if kind in _NO_ARRAYS:
            continue
        skipped = next((at for at, key in enumerate(_outside_params(keys)) if OPTIMIZERS.match(key)), None)
        around = root
        for key in keys[:-1] if skipped is None else keys[: skipped + 1]:
            around = around.setdefault(key, {})
            if not isinstance(around, dict):
                raise CheckpointError(f"two arrays of it have the place '{key[:200]}'", subject=path)
        if skipped is not None:
            around["left out"] = True
            continue
        name = ".".join(keys)
        if kind not in _ARRAYS:  # left out, a tensor would be missing without a word
            raise CheckpointError(f"'{name[:200]}' is of no kind that Orbax has: {str(kind)[:40]}", subject=path)
        if name in places or keys[-1] in around or not (store.in_ocdbt or is_plain_name(name)):
            raise CheckpointError(f"'{name[:200]}' is twice in it, or is no name", subject=path)
        around[keys[-1]] = None
        places[name] = around, keys[-1]
    if len(places) > MAX_TENSORS:
        raise CheckpointError(f"holds {len(places)} arrays; at most {MAX_TENSORS} are read", subject=path)
    return places


def _outside_params(keys: Sequence[str]) -> Sequence[str]:
    return keys[: keys.index(_PARAMS)] if _PARAMS in keys else keys[:2]


def _keys(entry: Any) -> list[str]:
    """Return the keys that lead to an array; none where they are damaged."""
    steps = entry.get("key_metadata") if isinstance(entry, dict) else None
    keys = [step.get("key") if isinstance(step, dict) else None for step in steps] if isinstance(steps, list) else []
    texts = [str(key) for key in keys if isinstance(key, str) or type(key) is int]
    return texts if len(texts) == len(keys) else []


def _kind(entry: Any) -> Any:
    """Return what stands at a place of the tree; the kind of an empty place for what is not to be read."""
    value = entry.get("value_metadata")
    about = value if isinstance(value, dict) else {}
    return "None" if about.get("skip_deserialize") is True else about.get("value_type")
