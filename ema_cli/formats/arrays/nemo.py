"""Read NeMo's `.nemo`: a tar archive with the weights as torch.save writes them, beside a configuration."""

from __future__ import annotations

import shlex

from ema_cli.errors import CheckpointError, NoWeights
from ema_cli.formats.arrays.archives import open_member, tar_members
from ema_cli.formats.torch_save.content import TorchFile
from ema_cli.storage.source import ByteSource

_WEIGHTS = "model_weights.ckpt"
_FOLDER = "model_weights/"
_GZIP = b"\x1f\x8b"


def open_nemo(file: ByteSource) -> TorchFile:
    """Read the description of the weights where they lie in the archive.

    Raises:
        NoWeights: for an archive without weights.
        CheckpointError: for one that is compressed or damaged, or has the weights in parts.
    """
    if file.size >= len(_GZIP) and file.read(0, len(_GZIP)) == _GZIP:
        whole = shlex.quote(str(file.path))
        raise CheckpointError(
            "is compressed with gzip, as old versions of NeMo did it",
            subject=file.path,
            hint=f"unpack it into another folder: gzip -dc {whole} > FOLDER/{shlex.quote(file.path.name)}",
        )
    members = tar_members(file)
    if _WEIGHTS not in members:
        parts = [name for name in members if name.startswith(_FOLDER) or name.endswith(f"/{_WEIGHTS}")]
        if parts:
            raise CheckpointError(
                f"holds the model in parts, as '{parts[0][:200]}'",
                subject=file.path,
                hint="load it with NeMo on one rank and save it again: model.save_to",
            )
        raise NoWeights(f"a tar archive without {_WEIGHTS}", subject=file.path)
    return open_member(members[_WEIGHTS], _WEIGHTS)
