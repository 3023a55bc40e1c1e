"""Signatures with the real packages, installed from nothing: their command verifies what we sign, and the reverse."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import write_hf_run
from tests.package.conftest import ROOT, Built, Environment, checked

pytestmark = pytest.mark.package

_KEYS = """
import sys
from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric import ec
for name, curve in zip("abc", (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1())):
    key = ec.generate_private_key(curve)
    password = b"secret" if name == "b" else None
    lock = s.BestAvailableEncryption(password) if password else s.NoEncryption()
    open(f"{name}.pem", "wb").write(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, lock))
    open(f"{name}.pub", "wb").write(key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))
"""


class Signing:
    """An environment with the extra `sign`, and a folder with a run and keys."""

    def __init__(self, environment: Environment, folder: Path) -> None:
        self.environment = environment
        self.folder = folder
        checked([environment.python, "-c", _KEYS], cwd=folder)
        write_hf_run(folder / "ckpts", [100, 200])

    def __call__(self, program: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment, with no network that it could want."""
        nowhere = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
        return subprocess.run(
            [self.environment.folder / "bin" / program, *arguments],
            cwd=self.folder,
            env=os.environ | nowhere | more,
            capture_output=True,
            text=True,
            check=False,
        )

    def average(self, out: str, key: str = "", **more: str) -> None:
        """Write an average, signed if a key is named."""
        sign = ("--sign", f"{key}.pem") if key else ()
        done = self("ema-cli", "average", "ckpts", "--half-life", "100ba", "-q", "-o", out, *sign, **more)
        assert done.returncode == 0, done.stderr

    def ours(self, out: str, *keys: str) -> str:
        """Return what `ema-cli verify` prints of an average."""
        demanded = [word for key in keys for word in ("--signed-by", f"{key}.pub")]
        done = self("ema-cli", "verify", out, *demanded)
        assert "Traceback" not in done.stderr
        return done.stdout if done.returncode == 0 else f"exit {done.returncode}: {done.stderr}"

    def theirs(self, command: str, path: str, signature: str, key: str, *more: str) -> bool:
        """Return whether `model_signing` signs or verifies."""
        named = ("--private_key", f"{key}.pem") if command == "sign" else ("--public_key", f"{key}.pub")
        done = self("model_signing", command, "key", path, "--signature", signature, *named, *more)
        return done.returncode == 0


@pytest.fixture(scope="session")
def environment(built: Built, make_environment: Callable[..., Environment]) -> Environment:
    """An environment with the wheel, and the newest of what the extra asks for."""
    return make_environment(sys.executable, f"ema-cli[sign] @ {built.wheel.as_uri()}")


@pytest.fixture
def signing(environment: Environment, tmp_path: Path) -> Signing:
    """Programs that sign, in a folder of their own."""
    return Signing(environment, tmp_path)


def test_their_command_verifies_what_we_sign(signing: Signing):
    """A folder, and one file with manifest and sums beside it; with a locked key, too. A changed byte, and it fails."""
    signing.average("release", "a")
    signing.average("one.safetensors", "b", EMA_SIGN_PASSWORD="secret")
    beside = ("verify", ".", "one.safetensors.sig", "b", "--ignore_unsigned_files")
    assert signing.theirs("verify", "release", "release/model.sig", "a")
    assert signing.theirs("verify", "release", "release/model.sig", "a", "--no-ignore-git-paths")
    assert signing.theirs(*beside)
    assert not signing.theirs("verify", "release", "release/model.sig", "c")
    for name in ("release/SHA256SUMS", "one.safetensors.manifest.json"):
        (signing.folder / name).write_bytes((signing.folder / name).read_bytes() + b" ")
    assert not signing.theirs("verify", "release", "release/model.sig", "a")
    assert not signing.theirs(*beside)


def test_we_verify_what_their_command_signs(signing: Signing):
    """A folder, and one file alone. A changed byte, another key, or no signature, and it does not hold."""
    signing.average("release")
    signing.average("one.safetensors")
    assert signing.theirs("sign", "release", "release/model.sig", "a")
    assert signing.theirs("sign", "one.safetensors", "one.safetensors.sig", "c")
    assert "; signed by a.pub; " in signing.ours("release", "c", "a")
    alone = "; signed by c.pub, but for one.safetensors.manifest.json and one.safetensors.sha256; "
    assert alone in signing.ours("one.safetensors", "c")
    assert "exit 6: error: release/model.sig: was not made with b.pub" in signing.ours("release", "b")
    config = signing.folder / "release/config.json"
    config.write_bytes(config.read_bytes() + b" ")
    assert "release/model.sig: is of other bytes of config.json" in signing.ours("release", "a")
    (signing.folder / "release/model.sig").unlink()
    assert "release/model.sig: is missing: nobody signed this" in signing.ours("release", "a")


def test_we_verify_what_we_sign(signing: Signing):
    """With every kind of key; two signatures of equal files differ, and both hold."""
    for key, more in (("a", {}), ("b", {"EMA_SIGN_PASSWORD": "secret"}), ("c", {})):
        signing.average(f"{key}.pt", key, **more)
        assert f"; signed by {key}.pub; " in signing.ours(f"{key}.pt", "a", "b", "c")
    signing.average("again.pt", "a")
    assert (signing.folder / "again.pt").read_bytes() == (signing.folder / "a.pt").read_bytes()


def test_a_signature_that_was_forged(signing: Signing):
    """Sums that were made to fit, in the signature too, do not help; nor does the hint of another key."""
    signing.average("release", "a")
    signing.average("other", "c")
    theirs = (signing.folder / "other/model.sig").read_text()
    mine = (signing.folder / "release/model.sig").read_text()
    hint = [text.split('"hint":"')[1].split('"')[0] for text in (theirs, mine)]
    payload = [text.split('"payload":"')[1].split('"')[0] for text in (theirs, mine)]
    for forged in (
        theirs,
        theirs.replace(*hint),
        mine.replace(payload[1], payload[0]),
        mine.replace('"sig":"', '"sig":"AA'),
    ):
        (signing.folder / "release/model.sig").write_text(forged)
        assert "exit 6: error: release/model.sig: was not made with a.pub" in signing.ours("release", "a")


def test_keys_that_will_not_do(signing: Signing):
    """Each is one error of the option: RSA, a key for a certificate's curve, a wrong password, no key at all."""
    script = (
        "from cryptography.hazmat.primitives import serialization as s\n"
        "from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa\n"
        "keys = (rsa.generate_private_key(65537, 2048), ed25519.Ed25519PrivateKey.generate(),\n"
        "    ec.generate_private_key(ec.SECP256K1()))\n"
        "for name, key in zip('xyz', keys):\n"
        "    pem = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())\n"
        "    open(f'{name}.pem', 'wb').write(pem)\n"
        "    pub = key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)\n"
        "    open(f'{name}.pub', 'wb').write(pub)\n"
        "open('n.pem', 'w').write('no key')\nopen('n.pub', 'w').write('no key')\n"
    )
    checked([signing.environment.python, "-c", script], cwd=signing.folder)
    for key in "xyzn":
        done = signing("ema-cli", "average", "ckpts", "--half-life", "100ba", "-o", "x.pt", "--sign", f"{key}.pem")
        assert (done.returncode, done.stderr.startswith(f"error: --sign: {key}.pem: is no private key")) == (2, True)
        assert f"exit 2: error: --signed-by: {key}.pub: is no public key" in signing.ours("ckpts", key)
    locked = ("ema-cli", "average", "ckpts", "--half-life", "100ba", "-o", "x.pt", "--sign", "b.pem")
    assert "b.pem: is not encrypted with this password" in signing(*locked, EMA_SIGN_PASSWORD="wrong").stderr
    assert not (signing.folder / "x.pt").exists()


def test_the_page_on_releases_shows_what_works(signing: Signing):
    """Its commands run one after the other, and each succeeds."""
    page = (ROOT / "docs/how-to/release.md").read_text()
    section = page[page.index("### Sign") :].split("```text\n")[1].split("```")[0]
    commands = [line.removeprefix("$ ").split() for line in section.splitlines()]
    assert len(commands) == 8
    for program, *arguments in commands:
        if program == "openssl":
            done = subprocess.run(
                [program, *arguments], cwd=signing.folder, capture_output=True, text=True, check=False
            )
        else:
            done = signing(program, *arguments)
        assert done.returncode == 0, (program, arguments, done.stderr)


def test_the_extra_pins_what_can_be_installed(environment: Environment):
    """Each version that the extra brings is one that constraints.txt names, or could."""
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    brought = {name.lower().replace("_", "-") for name in environment.versions()} - {"ema-cli"}
    assert brought <= pinned
