#!/usr/bin/env bash
# Seen with model-signing 1.1.1 on 2026-11-29
#
# `model_signing sign key --password SECRET` (with cryptography 50.0.2) cannot sign with an encrypted key,
# whatever the password: it hands the text on to cryptography, which takes bytes alone. One would expect a signature, as
# the option is for just that. From Python it works: use_elliptic_key_signer(private_key=..., password=b"...") with bytes,
# although its annotation says str.
#
# And installed from nothing it cannot be imported: it imports OpenSSL, and leaves pyopenssl to sigstore, which stopped
# asking for it (4.5.1 does not). So one installs pyopenssl beside it.
#
# Seen: "No module named 'OpenSSL'" without pyopenssl; with it the command exits with 1 and 'Cannot convert "<class 'str'>"
# instance to a buffer', and the same key signs from Python with bytes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check model-signing==1.1.1 sigstore==4.5.1 cryptography==50.0.2
if venv/bin/python -c 'import model_signing' 2>error; then exit 1; fi
tail -n 1 error
venv/bin/pip install --quiet --disable-pip-version-check pyopenssl==26.4.0
venv/bin/python - <<'PYTHON'
import subprocess
import sys
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from model_signing import signing

lock = serialization.BestAvailableEncryption(b"secret")
pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
Path("key.pem").write_bytes(ec.generate_private_key(ec.SECP256R1()).private_bytes(pem, pkcs8, lock))
Path("model").mkdir()
Path("model/weights").write_text("0")
command = ["venv/bin/model_signing", "sign", "key", "model", "--private_key", "key.pem", "--password", "secret"]
done = subprocess.run(command, capture_output=True, text=True)
print(f"exit {done.returncode}: {done.stderr.strip()}")
signing.Config().use_elliptic_key_signer(private_key="key.pem", password=b"secret").sign("model", "from-python.sig")
signed = Path("from-python.sig").exists()
print(f"from Python, with bytes: {'signed' if signed else 'not signed'}")
sys.exit(0 if done.returncode == 1 and "buffer" in done.stderr and signed else 1)
PYTHON
