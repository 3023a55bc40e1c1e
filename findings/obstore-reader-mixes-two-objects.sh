#!/usr/bin/env bash
# Seen with obstore 0.12.1 and s3fs 2026.9.0 on 2026-11-30
#
# obstore.open_reader asks for the object's size when it is opened, and gets its ETag with that. It then reads by range, as
# its buffer needs it, without the ETag as a condition. Where the object is replaced meanwhile, as a trainer does that saves
# to the same name, the reader goes on in the new one at the place it had come to: what it gives is the beginning of one
# object and the rest of the other, without an error. s3fs makes each request on the condition of the ETag that it saw
# first, and raises. One would expect the same of a client that offers such conditions (GetOptions' if_match).
#
# Seen, with moto: of an object of 4 MiB of "a", replaced by as many "b" after the first MiB was read, obstore gives 1 MiB
# of "a" and 3 of "b"; s3fs raises FileExpired.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check s3fs==2026.9.0 obstore==0.12.1 'moto[s3,server]==5.2.5'
cat >read.py <<'PYTHON'
import logging
import os
from importlib.metadata import version

import obstore
import s3fs
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
MIB = 1 << 20


def read(opened):
    obstore.put(store, "model", b"a" * (4 * MIB))
    reader = opened()
    first = bytes(reader.read(MIB))
    obstore.put(store, "model", b"b" * (4 * MIB))
    try:
        whole = first + bytes(reader.read(3 * MIB))
    except Exception as error:
        return type(error).__name__
    return {letter: whole.count(letter.encode()) / MIB for letter in "ab"}


found = {
    "obstore": read(lambda: obstore.open_reader(store, "model", buffer_size=MIB)),
    "s3fs": read(lambda: fs.open("bucket/model", "rb", block_size=MIB, cache_type="bytes")),
}
print(f"obstore {version('obstore')}, s3fs {version('s3fs')}: MiB of each object, or the error: {found}", flush=True)
os._exit(0 if found == {"obstore": {"a": 1.0, "b": 3.0}, "s3fs": "FileExpired"} else 1)
PYTHON
venv/bin/python -W ignore read.py 2>stderr || { tail -n 5 stderr; exit 1; }
