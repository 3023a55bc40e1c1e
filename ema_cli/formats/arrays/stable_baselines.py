"""Read what stable-baselines3 saves: a zip archive with the policy as torch.save writes it, and counters as JSON."""

from __future__ import annotations

from dataclasses import replace

from ema_cli.errors import CheckpointError, NoWeights
from ema_cli.formats.arrays.archives import open_member, zip_members
from ema_cli.formats.json_text import parse_json
from ema_cli.formats.torch_save.content import TorchFile
from ema_cli.formats.torch_save.zip_directory import read_directory
from ema_cli.storage.source import ByteSource

_POLICY, _DATA = "policy.pth", "data"
_MAX_DATA_BYTES = 64 << 20


def is_model(file: ByteSource) -> bool:
    """Return whether an archive is a model, or cannot be looked into."""
    try:
        return _POLICY in read_directory(file)
    except CheckpointError:
        return True


def open_model(file: ByteSource) -> TorchFile:
    """Read the policy's description, and the plain numbers beside it; what is pickled beside it is not looked at.

    Raises:
        NoWeights: for another archive.
        CheckpointError: for one that is damaged or compressed.
    """
    if not is_model(file):
        raise NoWeights("a zip archive, but not one that stable-baselines3 wrote", subject=file.path)
    members = zip_members(file)
    missing = next((name for name in (_POLICY, _DATA) if name not in members), None)
    if missing is not None:
        raise CheckpointError(
            f"'{missing}' is compressed or missing in it; stable-baselines3 stores it as it is",
            subject=file.path,
            hint="load it with stable-baselines3 and save it again",
        )
    opened = open_member(members[_POLICY], _POLICY)
    size = members[_DATA].size
    if size > _MAX_DATA_BYTES:
        raise CheckpointError(
            f"'{_DATA}' in it has {size} bytes; at most {_MAX_DATA_BYTES} are read", subject=file.path
        )
    try:
        data = parse_json(members[_DATA].read(0, size), constants=True)
    except ValueError as error:
        raise CheckpointError(f"'{_DATA}' in it is not valid JSON: {error}", subject=file.path) from error
    numbers = data.items() if isinstance(data, dict) else ()
    return replace(
        opened, root={**{name: value for name, value in numbers if type(value) is int}, "policy": opened.root}
    )
