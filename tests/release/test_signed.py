"""A signature says whose an average is: `average --sign` makes it, `verify --signed-by` demands it.

The packages that sign have a stand-in here; tests/package/test_signing.py has the real ones.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ema_cli import average, make_plan, open_run
from ema_cli.errors import UsageError
from ema_cli.law.recipe import Recipe
from tests import signing_stand_in
from tests.conftest import Cli, Outcome, write_hf_run
from tests.release.verified import MANIFEST, SUMS, flip, vouch

CKPTS = ("ckpts", "--half-life", "100ba", "-q")
SINGLE = ("one.safetensors", "one.safetensors.manifest.json", "one.safetensors.sha256")


@pytest.fixture
def run(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line in a folder with a run and three pairs of keys."""
    signing_stand_in.install(monkeypatch)
    write_hf_run(tmp_path / "ckpts", [100, 200])
    signing_stand_in.write_keys(tmp_path, "mine", "old", "theirs")
    return cli


@pytest.fixture
def release(run: Cli, tmp_path: Path) -> Path:
    """A release that was signed."""
    assert run("average", *CKPTS, "-o", "release", "--sign", "mine.pem").code == 0
    return tmp_path / "release"


def verify(run: Cli, name: str, *keys: str) -> Outcome:
    return run("verify", name, *(word for key in keys for word in ("--signed-by", f"{key}.pub")))


def sums_of(folder: Path, *names: str) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def signed_sums(path: Path) -> dict[str, str]:
    from ema_cli.manifest.signature import read_signature

    return dict(read_signature(path).sums)


def test_a_signature_covers_every_file_and_stands_in_no_list(release: Path):
    """Manifest and sums, too; it is in neither of them."""
    names = [path.relative_to(release).as_posix() for path in release.rglob("*") if path.name != "model.sig"]
    assert {MANIFEST, SUMS, "README.md", "config.json", "model.safetensors"} < set(names)
    assert signed_sums(release / "model.sig") == sums_of(release, *names)
    assert not any("model.sig" in (release / name).read_text() for name in (MANIFEST, SUMS))


def test_a_single_file_has_its_signature_beside_it(run: Cli, tmp_path: Path):
    """It covers the file, its manifest and its sums."""
    assert run("average", *CKPTS, "-o", SINGLE[0], "--sign", "mine.pem").code == 0
    assert signed_sums(tmp_path / f"{SINGLE[0]}.sig") == sums_of(tmp_path, *SINGLE)
    for name in (*SINGLE, f"{SINGLE[0]}.sig"):
        done = verify(run, name, "mine")
        assert done.out.endswith("; signed by mine.pub; no part of it: one.safetensors.sig\n"), done


def test_several_averages_are_signed_one_by_one(run: Cli, tmp_path: Path):
    """Each has its own signature; one more file that ends in .sig is a problem."""
    assert run("average", *CKPTS, "--half-life", "50ba", "-o", "all/{half_life}.pt", "--sign", "mine.pem").code == 0
    assert sorted(path.name for path in (tmp_path / "all").glob("*.sig")) == ["100ba.pt.sig", "50ba.pt.sig"]
    done = verify(run, "all", "mine")
    assert (done.code, done.out.count("; signed by mine.pub")) == (0, 2), done
    (tmp_path / "all/notes.sig").write_text("x")
    assert "all/notes.sig: lies among averages" in verify(run, "all", "mine").err


def test_the_signature_changes_no_other_byte(run: Cli, tmp_path: Path):
    """Who signs is not part of the recipe."""
    assert run("average", *CKPTS, "-o", "signed", "--sign", "mine.pem").code == 0
    assert run("average", *CKPTS, "-o", "plain").code == 0
    plain = {path.name: path.read_bytes() for path in (tmp_path / "plain").iterdir()}
    signed = {path.name: path.read_bytes() for path in (tmp_path / "signed").iterdir()}
    assert signed.pop("model.sig")
    assert signed == plain
    again = run("average", "ckpts", "--recipe", f"signed/{MANIFEST}", "-o", "again", "--sign", "theirs.pem", "-q")
    assert (again.code, verify(run, "again", "theirs").code) == (0, 0)


@pytest.mark.parametrize("more", [(), ("--like-input",)])
def test_the_signature_of_a_checkpoint_is_not_passed_on(run: Cli, tmp_path: Path, more: tuple[str, ...]):
    """It would be of other files; the average has its own, whatever form it is written in."""
    (tmp_path / "ckpts/checkpoint-200/model.sig").write_text("of the checkpoint")
    assert run("average", *CKPTS, "-o", "plain", *more).code == 0
    assert not (tmp_path / "plain/model.sig").exists()
    assert run("average", *CKPTS, "-o", "release", "--sign", "mine.pem", *more).code == 0
    assert "; signed by mine.pub; " in verify(run, "release", "mine").out


def test_nobody_asks_who_signed_it(run: Cli, release: Path):
    """The sentence says that it is signed, and that this was not checked."""
    done = verify(run, "release")
    assert done.out.endswith("; its signature model.sig is not checked (--signed-by); no part of it: model.sig\n")
    assert run("verify", "release", "--json").json["outputs"][0]["signature"] == {
        "name": "model.sig", "checked": False, "signed_by": None, "not_covered": []
    }  # fmt: skip
    against = run("verify", "release", "--against", "ckpts")
    assert "; all bytes are those of 2 checkpoints averaged anew; its signature model.sig is not checked" in against.out
    strict = run("verify", "release", "--against", "ckpts", "--strict")
    assert (strict.code, "release: its signature model.sig is not checked (--strict)" in strict.err) == (6, True)


def test_keys_that_were_changed(run: Cli, release: Path):
    """One of several keys will do, and is named."""
    for keys in (("mine",), ("mine", "old"), ("old", "mine")):
        done = verify(run, "release", *keys)
        assert (done.code, "; signed by mine.pub; " in done.out) == (0, True), done
    both = run("verify", "release", "--signed-by", "mine.pub", "--against", "ckpts", "--strict", "--json").json
    assert both["outputs"][0]["signature"]["signed_by"] == "mine.pub"


def test_no_signature_although_one_is_demanded(run: Cli, release: Path):
    """What nobody signed does not hold."""
    (release / "model.sig").unlink()
    done = verify(run, "release", "mine")
    assert (done.code, done.err.splitlines()[0]) == (6, "error: release/model.sig: is missing: nobody signed this")
    assert run("verify", "release", "--json").json["outputs"][0]["signature"] is None


def test_the_signature_of_another_key(run: Cli, release: Path):
    """The keys that were tried are named."""
    done = verify(run, "release", "theirs", "old")
    assert done.err.splitlines()[0] == "error: release/model.sig: was not made with theirs.pub, old.pub"
    assert run("verify", "release", "--signed-by", "old.pub", "--json").json["outputs"][0]["signature"]["checked"]


def test_the_signature_of_another_average(run: Cli, release: Path):
    """It is true, but of other files."""
    assert run("average", *CKPTS, "-o", "other", "--dtype", "bfloat16", "--sign", "mine.pem").code == 0
    (release.parent / "other/model.sig").replace(release / "model.sig")
    done = verify(run, "release", "mine")
    assert done.code == 6
    assert (
        "release/model.sig: is of other bytes of SHA256SUMS, config.json, ema-manifest.json, model.safetensors"
        in done.err
    )


Change = Callable[[Path], object]


def _add(folder: Path) -> None:
    (folder / "more.json").write_text("{}")
    vouch(folder, lambda manifest: manifest["outputs"].append({"name": "more.json", "bytes": 0, "sha256": ""}))


def _edit(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    vouch(folder)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (_edit, "is of other bytes of SHA256SUMS, config.json, ema-manifest.json"),
        (_add, "does not cover more.json"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "covers what is not there: tokenizer.json"),
        (lambda folder: (folder / MANIFEST).unlink(), f"covers what is not there: {MANIFEST}"),
        (lambda folder: flip(folder / "model.safetensors"), "is of other bytes of model.safetensors"),
    ],
)  # fmt: skip
def test_files_changed_after_they_were_signed(run: Cli, release: Path, change: Change, fact: str):
    """Sums that were made to fit do not help; a file more, or one less, is a problem, too."""
    change(release)
    done = verify(run, "release", "mine")
    assert (done.code, f"release/model.sig: {fact}" in done.err) == (6, True), done


def test_a_file_that_is_not_listed_is_not_signed_either(run: Cli, release: Path):
    """What lies there unlisted is a problem whoever signed the rest."""
    (release / "code.py").write_text("x")
    assert "release/code.py: is not listed in SHA256SUMS" in verify(run, "release", "mine").err


def test_a_card_that_was_edited(run: Cli, release: Path):
    """The user may allow that: the sentence names it as not compared."""
    (release / "README.md").write_text("x")
    assert verify(run, "release", "mine").code == 6
    done = run("verify", "release", "--signed-by", "mine.pub", "--allow-extra", "README.md")
    assert (done.code, "; signed by mine.pub; not compared: README.md; " in done.out) == (0, True), done


@pytest.mark.parametrize(
    ("name", "held"), [("notes.txt", True), ("../mine.pub", False), ("link", False), ("a\0", False)]
)
def test_files_that_were_signed_too(run: Cli, release: Path, name: str, held: bool):
    """A signer may sign what lies beside the average: it is read; a way out of the folder, and a link, are not."""
    (release / "notes.txt").write_text("x")
    (release / "link").symlink_to(release / "notes.txt")
    sums = signed_sums(release / "model.sig") | {name: hashlib.sha256(b"x").hexdigest()}
    (release / "model.sig").write_text(signing_stand_in.signature("release", sums, "mine"))
    allowed = ("--allow-extra", "notes.txt", "--allow-extra", "link")
    done = run("verify", "release", "--signed-by", "mine.pub", *allowed)
    assert (done.code == 0, "covers what is not there" in done.err) == (held, not held), done
    (release / "notes.txt").write_text("y")
    assert run("verify", "release", "--signed-by", "mine.pub", *allowed).code == 6


def test_a_release_in_the_cache_of_the_hub(run: Cli, release: Path):
    """There each file is a link into `blobs`: what is behind it is what was signed, or it is not."""
    blobs = release.parent / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(release.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    assert "; signed by mine.pub; " in verify(run, "release", "mine").out
    (release / "config.json").write_text("{}")
    assert verify(run, "release", "mine").code == 6


def test_a_file_that_was_signed_alone(run: Cli, tmp_path: Path):
    """As `model_signing sign key one.safetensors` does: manifest and sums are named as not covered."""
    assert run("average", *CKPTS, "-o", SINGLE[0]).code == 0
    text = signing_stand_in.signature(SINGLE[0], {".": sums_of(tmp_path, SINGLE[0])[SINGLE[0]]}, "mine")
    (tmp_path / f"{SINGLE[0]}.sig").write_text(text)
    done = verify(run, SINGLE[0], "mine")
    assert f"; signed by mine.pub, but for {SINGLE[1]} and {SINGLE[2]}; " in done.out
    strict = run("verify", SINGLE[0], "--signed-by", "mine.pub", "--strict")
    assert f"its signature does not cover {SINGLE[1]} and {SINGLE[2]} (--strict)" in strict.err
    vouch(tmp_path / SINGLE[0], lambda manifest: manifest.update(warnings=["x"]))
    assert verify(run, SINGLE[0], "mine").code == 0
    flip(tmp_path / SINGLE[0])
    assert f"{SINGLE[0]}.sig: is of other bytes of {SINGLE[0]}" in verify(run, SINGLE[0], "mine").err


def test_a_signature_without_a_key(run: Cli, release: Path):
    """The one with a certificate is named as such, with the program that checks it."""
    bundle = json.loads((release / "model.sig").read_text())
    bundle["verificationMaterial"] = {"certificate": {"rawBytes": ""}}
    bundle["dsseEnvelope"]["seal"] = ""
    (release / "model.sig").write_text(json.dumps(bundle))
    told = verify(run, "release", "mine").err
    assert "was not made with mine.pub, but without a key: `model_signing verify` checks it" in told


@pytest.mark.parametrize("text", ["", "x", "[]", "{}", '{"dsseEnvelope": {"payload": "e30="}}', "[" * 9999, "\udcff"])
def test_what_is_no_signature(run: Cli, release: Path, text: str):
    """Other files of that name are no signature, whatever they hold."""
    (release / "model.sig").write_bytes(text.encode(errors="surrogateescape"))
    assert "release/model.sig: is no signature that model-signing makes" in verify(run, "release", "mine").err


@pytest.mark.parametrize("sums", [{"a": "0" * 63}, {"a": "G" * 64}])
def test_sums_that_are_none(run: Cli, release: Path, sums: dict[str, str]):
    """Sums of another kind, as of parts of files, are refused."""
    (release / "model.sig").write_text(signing_stand_in.signature("release", sums, "mine"))
    assert "holds other sums than the sha256 of whole files" in verify(run, "release", "mine").err


def test_what_is_tuned_replaces_a_signature_as_an_average_does(run: Cli, tmp_path: Path):
    """What stays would be a signature of files that are not there any more."""
    assert run("average", *CKPTS, "-o", SINGLE[0], "--sign", "mine.pem").code == 0
    assert (tmp_path / f"{SINGLE[0]}.sig").exists()
    command = ["tune", "ckpts", "--half-life", "100ba", "--eval", "echo 1", "-o", SINGLE[0], "--force"]
    done = run(*command, "--allow-last")
    assert done.code == 0, done
    assert not (tmp_path / f"{SINGLE[0]}.sig").exists()
    assert run("verify", SINGLE[0]).code == 0


def test_a_replaced_release_takes_its_signature_along(run: Cli, release: Path):
    """With --force the signature goes with the files that it is of, in a folder and beside a file."""
    assert run("average", *CKPTS, "-o", "release", "--force").code == 0
    assert not (release / "model.sig").exists()
    signature = release.parent / "one.pt.sig"
    for more, is_there in (("--sign", "mine.pem"), True), ((), False), (("--sign", "old.pem"), True):
        assert run("average", *CKPTS, "-o", "one.pt", "--force", *more).code == 0
        assert signature.exists() == is_there
    assert verify(run, "one.pt", "old").code == 0
    signature.write_text("somebody else's")
    assert "one.pt.sig: exists already, and is not ema-cli's" in run("average", *CKPTS, "-o", "one.pt", "-f").err


def test_nothing_is_left_where_signing_fails(run: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The signature is made before anything is published: all or nothing."""

    def full(self: object, model_path: Path, signature_path: Path) -> None:
        signature_path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(signing_stand_in.Config, "sign", full)
    before = sorted(tmp_path.iterdir())
    done = run("average", *CKPTS, "-o", "release", "--sign", "mine.pem")
    assert (done.code, "model.sig: cannot be written: No space left on device" in done.err) == (5, True), done
    assert sorted(tmp_path.iterdir()) == before


def test_the_password_of_a_key(run: Cli, tmp_path: Path):
    """It comes from the environment, or is asked for on a terminal; no option shows it to every other process."""
    (tmp_path / "locked.pem").write_text("ENCRYPTED mine secret")
    sign = ("average", *CKPTS, "-o", "release", "--sign", "locked.pem")
    none = run(*sign)
    assert (none.code, "its password goes into the variable EMA_SIGN_PASSWORD" in none.err) == (2, True)
    wrong = run(*sign, env={"EMA_SIGN_PASSWORD": "wrong"})
    assert (wrong.code, "locked.pem: is not encrypted with this password" in wrong.err) == (2, True)
    assert run(*sign, env={"EMA_SIGN_PASSWORD": "secret"}).code == 0
    assert verify(run, "release", "mine").code == 0


@pytest.mark.parametrize("key", ["mine.pub", "none.pem", "ckpts"])
def test_a_key_that_is_none_ends_it_before_it_begins(run: Cli, tmp_path: Path, key: str):
    """Before a tensor is read; the public key is none to sign with, the private key none to check with."""
    done = run("average", *CKPTS, "-o", "release", "--sign", key)
    assert (done.code, done.err.startswith(f"error: --sign: {key}: ")) == (2, True), done
    other = key.replace("pub", "pem")
    done = run("verify", "release", "--signed-by", other)
    assert (done.code, done.err.startswith(f"error: --signed-by: {other}: ")) == (2, True), done


def test_without_the_package_the_line_that_installs_it(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The error names the extra; the rest of ema-cli needs none of it."""
    write_hf_run(tmp_path / "ckpts", [100, 200])
    signing_stand_in.write_keys(tmp_path, "mine")
    monkeypatch.setitem(sys.modules, "model_signing", None)
    for command in (("average", *CKPTS, "--sign", "mine.pem"), ("verify", "ckpts", "--signed-by", "mine.pub")):
        done = cli(*command)
        assert done.code == 2
        assert f"error: {command[-2]}: needs the package model-signing" in done.err
        assert "hint:  install it: pip install 'ema-cli[sign]'" in done.err
    with pytest.raises(UsageError) as raised:
        average(
            make_plan(open_run(tmp_path / "ckpts"), Recipe(half_life="100ba")),
            tmp_path / "x.pt",
            sign=tmp_path / "mine.pem",
        )
    assert raised.value.hint == "install it: pip install 'ema-cli[sign]'"


def test_python_signs_too(run: Cli, tmp_path: Path):
    """`average(..., sign=KEY)`."""
    plan = make_plan(open_run(tmp_path / "ckpts"), Recipe(half_life="100ba"))
    assert average(plan, tmp_path / "x.pt", sign=str(tmp_path / "mine.pem")).signed
    assert verify(run, "x.pt", "mine").code == 0


def test_a_signature_without_a_manifest_is_refused(run: Cli):
    """It would vouch for a file that says nothing of where it comes from."""
    done = run("average", *CKPTS, "-o", "x.pt", "--sign", "mine.pem", "--no-manifest")
    assert (done.code, "--sign: covers manifest and sums, and --no-manifest writes none" in done.err) == (2, True)
