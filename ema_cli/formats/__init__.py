"""One reader per container format. A new one is a module with `matches` and `open_checkpoint`, and an entry here.

`matches` looks at names and first bytes only. No reader imports torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import CheckpointError, IncompleteCheckpoint, NoWeights, UsageError, option
from ema_cli.formats.dcp import directory as dcp_directory
from ema_cli.formats.folders import deepspeed, refused
from ema_cli.formats.folders import diffusers as pipeline
from ema_cli.formats.folders import huggingface as hf_directory
from ema_cli.formats.options import LEAVE_OUT, ReadOptions
from ema_cli.formats.safetensors import file as safetensors_file
from ema_cli.formats.torch_save import file as torch_file
from ema_cli.formats.trainers.prefixes import strip_prefixes
from ema_cli.storage.location import location


class Reader(Protocol):
    """What a module in this folder provides."""

    def matches(self, path: Path) -> bool:
        """Return whether `path` looks like this format, from names and first bytes."""
        ...

    def open_checkpoint(self, path: Path, options: ReadOptions) -> Checkpoint:
        """Read the headers of the checkpoint at `path`."""
        ...


WHAT_IS_READ = (
    "read: .safetensors, files of torch.save (.pt .pth .bin .ckpt .tar), folders of Hugging Face, "
    "torch.distributed.checkpoint and DeepSpeed"
)

# Most specific first. Those of folders come first of all.
FOLDER_READERS: tuple[Reader, ...] = (hf_directory, dcp_directory, pipeline, deepspeed, refused)
READERS: tuple[Reader, ...] = (*FOLDER_READERS, safetensors_file, torch_file)


def is_checkpoint_folder(folder: Path) -> bool:
    """Return whether the folder itself is one checkpoint, read or refused."""
    return any(reader.matches(folder) for reader in FOLDER_READERS)


def open_checkpoint(path: Path, options: ReadOptions | None = None) -> Checkpoint:
    """Read the headers of the checkpoint at `path`, a file or a directory.

    Raises:
        IncompleteCheckpoint: where its writer is not done, or died.
        NoWeights: for a readable file without model weights.
        CheckpointError: for everything else that cannot be read, or must not be.
        RunError: where `options.weights` asks for weights that are not there.
        UsageError: where another option does not fit what is there.
    """
    options = options or ReadOptions()
    for reader in READERS:
        if reader.matches(path):
            if options.component is not None and reader not in (hf_directory, dcp_directory, pipeline):
                raise UsageError(
                    f"holds one model, and {option('component')} chooses of several", subject=path, hint=LEAVE_OUT
                )
            checkpoint = reader.open_checkpoint(path, options)
            return checkpoint if options.keep_prefix else strip_prefixes(checkpoint)
    here = location(path).info()
    if here.is_folder:
        raise CheckpointError("a folder without a checkpoint", subject=path, hint=WHAT_IS_READ)
    if here.is_file and here.size < 8:
        raise IncompleteCheckpoint("is empty", subject=path, hint="its writer did not finish")
    location(path).open()  # which says so if it cannot be read at all
    raise NoWeights("not a checkpoint of a format that is read", subject=path, hint=WHAT_IS_READ)
