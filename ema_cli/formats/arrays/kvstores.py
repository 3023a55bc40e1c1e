"""Where tensorstore finds the files of a folder: on this machine, or in a store, which it asks by itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ema_cli.errors import CheckpointError
from ema_cli.storage.names import StorePath

NOTE = "read by tensorstore, whose requests name no version of an object: that none was replaced is checked in the end"
_REGION = "us-east-1"  # where the environment names none: a store of one's own asks for any
_RETRIES = {"max_retries": 5, "initial_delay": "200ms", "max_delay": "15s"}
# tensorstore waits for ever for an answer that stops, unless the environment says otherwise before its first request.
_PATIENCE = {"CONNECT_TIMEOUT_SECONDS": "10", "LOW_SPEED_TIME_SECONDS": "30", "LOW_SPEED_LIMIT_BYTES": "1"}


def kvstore_of(folder: Path) -> dict[str, Any]:
    """Return what tensorstore is told of the files in a folder.

    Raises:
        CheckpointError: for a store of a kind that it does not reach.
    """
    if not isinstance(folder, StorePath):
        return {"driver": "file", "path": f"{folder.absolute()}/"}
    for name, value in _PATIENCE.items():
        os.environ.setdefault(f"TENSORSTORE_CURL_{name}", value)
    place = {"bucket": folder.bucket, "path": f"{folder.key}/"}
    if folder.scheme == "gs":
        return {"driver": "gcs", **place, "gcs_request_retries": _RETRIES}
    if folder.scheme != "s3":
        raise CheckpointError(
            f"is a checkpoint of Orbax's, and the package that reads it does not reach {folder.scheme}://",
            subject=folder,
            hint="copy it to a local folder, or to s3:// or gs://",
        )
    from ema_cli.storage.store.clients import endpoint  # which only those need who read from a store

    own = {"endpoint": endpoint()} if endpoint() else {}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or (_REGION if own else "")
    return {
        "driver": "s3",
        **place,
        **own,
        **({"aws_region": region} if region else {}),
        **({"aws_credentials": {"type": "anonymous"}} if folder.is_anonymous else {}),
        "s3_request_retries": _RETRIES,
        "requester_pays": os.environ.get("AWS_REQUEST_PAYER", "").lower() == "true",
    }
