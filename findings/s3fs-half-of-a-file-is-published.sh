#!/usr/bin/env bash
# Seen with s3fs 2026.9.0, obstore 0.12.1 and torch 2.13.0 on 2026-11-30
#
# `with fs.open("s3://...", "wb") as file` completes the object when its block ends, also where it ends with an exception:
# what was written so far takes the place of the object there. Multipart uploads, too, which a store would forget if it
# was not told to complete them. So a torch.save that fails halfway, or Ctrl-C, replaces a good checkpoint with half of
# one, as if it had been saved. One would expect that the object stays, for S3 knows no half-written ones; obstore's
# open_writer, in the same with statement, gives the upload up.
#
# Seen, with moto: after a block that wrote 12 MiB, in parts of 5 MiB, and raised, s3fs has an object of 12 MiB where one of
# four bytes was; after a torch.save of a dict with a lambda in it one that torch.load cannot read. obstore has the old one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
venv/bin/pip install --quiet --disable-pip-version-check numpy==2.4.6 s3fs==2026.9.0 obstore==0.12.1 'moto[s3,server]==5.2.5'
cat >written.py <<'PYTHON'
import logging
import os
import pickle
import sys
from importlib.metadata import version

import obstore
import s3fs
import torch
from moto.server import ThreadedMotoServer
from obstore.store import S3Store

logging.disable()
os.environ["NO_PROXY"] = "127.0.0.1"
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
endpoint = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
fs = s3fs.S3FileSystem(key="a-key", secret="a-secret", endpoint_url=endpoint, client_kwargs={"region_name": "us-east-1"})
fs.call_s3("create_bucket", Bucket="bucket")
store = S3Store(
    "bucket", endpoint=endpoint, access_key_id="a-key", secret_access_key="a-secret", region="us-east-1",
    virtual_hosted_style_request=False, client_options={"allow_http": True},
)  # fmt: skip
part = 5 << 20


def size(name):
    return obstore.head(store, name)["size"]


for name in ("s3fs", "obstore"):
    obstore.put(store, name, b"good")
for name in ("s3fs", "obstore"):
    writer = fs.open("bucket/s3fs", "wb", block_size=part) if name == "s3fs" else obstore.open_writer(
        store, name, buffer_size=part
    )  # fmt: skip
    try:
        with writer as file:
            file.write(bytes(12 << 20))
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
sizes = {name: size(name) for name in ("s3fs", "obstore")}
with fs.open("bucket/model.pt", "wb") as file:
    torch.save({"weight": torch.ones(2)}, file)
try:
    with fs.open("bucket/model.pt", "wb") as file:
        torch.save({"weight": torch.ones(2), "schedule": lambda step: step}, file)
except (pickle.PicklingError, AttributeError) as error:
    raised = type(error).__name__
try:
    with fs.open("bucket/model.pt", "rb") as file:
        torch.load(file)
    state = "loads"
except RuntimeError as error:
    state = str(error).partition(":")[0]
print(f"s3fs {version('s3fs')}, obstore {version('obstore')}: sizes {sizes}; after a {raised} model.pt: {state}", flush=True)
is_so = sizes == {"s3fs": 12 << 20, "obstore": 4} and state == "PytorchStreamReader failed locating file data.pkl"
os._exit(0 if is_so else 1)
PYTHON
venv/bin/python -W ignore written.py 2>stderr || { tail -n 5 stderr; exit 1; }
