#!/usr/bin/env bash
# Seen with obstore 0.12.1 on 2026-11-30
#
# A client with skip_signature=True sends its requests unsigned, whatever credentials there are. obstore.sign asked of
# the same client makes a signed address all the same, for S3: it has the key's name and a signature, equal to that of a
# client that signs. For Azure it refuses. Whoever makes addresses from the client of a public bucket has requests that
# are no longer anonymous.
#
# Seen: a request of the client has neither an Authorization header nor a query; the address that it signs has
# X-Amz-Credential and X-Amz-Signature; Azure's error is "Generating SAS keys while skipping signatures is not supported".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check obstore==0.12.1
venv/bin/python - <<'PYTHON'
import sys
import threading
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import obstore
from obstore.store import AzureStore, S3Store

asked = []


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        asked.append((self.path, self.headers.get("Authorization")))
        self.send_response(200)
        for name, value in (("Content-Length", "1"), ("ETag", '"1"'), ("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"x")

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
store = S3Store(
    "bucket", endpoint=f"http://127.0.0.1:{server.server_address[1]}", access_key_id="a-key", secret_access_key="a-secret",
    region="us-east-1", virtual_hosted_style_request=False, skip_signature=True, client_options={"allow_http": True},
)  # fmt: skip
read = bytes(obstore.get(store, "public").bytes())
query = obstore.sign(store, "GET", "public", timedelta(minutes=1)).partition("?")[2]
azure = AzureStore("container", account_name="name", account_key="a2V5", skip_signature=True)
try:
    refused = obstore.sign(azure, "GET", "public", timedelta(minutes=1))
except Exception as error:
    refused = str(error).splitlines()[0]
is_signed = "X-Amz-Credential=a-key" in query and "X-Amz-Signature=" in query
print(f"obstore {obstore.__version__}: asked {asked}, read {read!r}; the address is signed: {is_signed}; Azure: {refused}")
sys.exit(0 if asked == [("/bucket/public", None)] and read == b"x" and is_signed and "not supported" in refused else 1)
PYTHON
