"""The address of an object is a `Path` that the file system never sees."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from ema_cli.errors import UsageError
from ema_cli.storage.names import StorePath, anonymously, as_path, check_no_address, common_folder, plain, relative_name

RUN = as_path("s3://bucket/run/")


def test_an_address_is_printed_as_it_was_written():
    """Two slashes, and none at the end; also after pathlib made one of the two."""
    assert str(RUN) == RUN.as_posix() == str(as_path(Path("s3://bucket/run"))) == "s3://bucket/run"
    assert pickle.loads(pickle.dumps(RUN)) == RUN


def test_names_are_found_from_an_address():
    """As from any path: below it, around it, beside it."""
    file = RUN / "step-1" / "model.safetensors"
    assert isinstance(file, StorePath)
    assert (file.bucket, file.key, file.suffix) == ("bucket", "run/step-1/model.safetensors", ".safetensors")
    assert file.parent.parent == RUN
    assert str(file.with_name("config.json")) == "s3://bucket/run/step-1/config.json"
    assert file.relative_to(RUN).as_posix() == relative_name(file, RUN) == "step-1/model.safetensors"
    assert file.is_relative_to(RUN)
    assert file.absolute() == plain(file) == plain(file.parent / ".." / "step-1" / file.name) == file


def test_what_is_found_from_an_anonymous_address_is_anonymous():
    """Below it, around it, beside it, its bucket, and in another process; the place is the same."""
    run = anonymously(RUN)
    found = [run, run / "a", run.parent, run.with_name("b"), run.whole_bucket, run.absolute(), plain(run / ".." / "c")]
    found += [common_folder([run / "a", run / "b"]), pickle.loads(pickle.dumps(run))]
    assert [isinstance(path, StorePath) and path.is_anonymous for path in found] == [True] * len(found)
    assert run == RUN
    assert not RUN.is_anonymous
    assert anonymously(Path("run")) == Path("run")


@pytest.mark.parametrize("word", ["run", "/data/run", "C:/run", "hdfs://host/run", "./s3:/bucket", "a/s3://bucket"])
def test_any_other_word_is_a_local_path(word: str):
    """Only the schemes of stores that are read make an address, at the beginning of a word."""
    assert type(as_path(word)) is type(Path())


@pytest.mark.parametrize(
    ("word", "fact"),
    [
        ("s3://", "s3://: names no bucket"),
        ("s3:///bucket/run", "s3://: names no bucket"),
        ("az://box/../x", "az://box/../x: '..' has no meaning in a store"),
        ("s3://KEY:SECRET@bucket/run", "s3://...@bucket/run: holds a user's name and password"),
        ("s3://KEY:SEC/RET@bucket/run", "s3://...@bucket/run: holds a user's name and password"),
        ("s3://KEY:SEC/RET", "s3://...: holds a user's name and password"),
        ("https://token@host/x.pt", "https://...@host/x.pt: holds a user's name and password"),
        ("https://me:sec/ret@host:80/x.pt?sig=1", "https://...@host:80/x.pt: holds a user's name and password"),
    ],
)
def test_what_is_no_address_is_an_error_without_secrets(word: str, fact: str):
    """It says what is wrong, and shows neither name nor password."""
    with pytest.raises(UsageError) as caught:
        as_path(word)
    assert str(caught.value) == fact


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("hdfs://me:secret@host/run", "hdfs://...@host/run"),
        ("sftp://me:sec/ret@host/run", "sftp://...@host/run"),
        ("ftp://host/x.pt?token=secret", "ftp://host/x.pt"),
        ("ftp://host:21/x.pt", "ftp://host:21/x.pt"),
        ("ftp://me:sec/ret", "ftp://..."),
    ],
)
def test_an_address_of_another_kind_is_an_error_without_secrets(word: str, shown: str):
    """What may be a name, a password or a signature is left out."""
    with pytest.raises(UsageError) as caught:
        check_no_address(Path(word))
    assert caught.value.subject == shown


@pytest.mark.parametrize("word", ["https://host:8080/x.pt", "http://127.0.0.1:9/a:b@c", "https://[::1]:80/x.pt"])
def test_a_port_is_no_password(word: str):
    """Nor is what stands behind the server."""
    assert str(as_path(word)) == word


def test_capital_letters_make_no_other_scheme():
    """As in every address; what follows is kept as it is, and a signature apart."""
    assert as_path("S3://bucket/Run") == as_path("s3://bucket/Run")
    assert str(as_path("HTTPS://host/model.pt?X-Amz-Signature=abc")) == "https://host/model.pt"


def test_a_container_of_azure_may_stand_before_its_account():
    """There the sign is no password."""
    assert as_path("abfss://box@account.dfs.core.windows.net/run").name == "run"


def test_a_signature_is_in_no_name():
    """What follows the question mark of a web address is kept apart; in a bucket it is a part of the name."""
    signed = as_path("https://host/model.pt?X-Amz-Signature=abc")
    assert isinstance(signed, StorePath)
    assert (str(signed), signed.suffix, signed.query) == ("https://host/model.pt", ".pt", "X-Amz-Signature=abc")
    assert as_path("s3://bucket/what?.pt").name == "what?.pt"


@pytest.mark.parametrize("name", ["open", "exists", "resolve", "unlink", "iterdir", "glob", "rglob", "read_bytes"])
def test_the_file_system_never_takes_an_address_for_a_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It is an error with the address, even where a file has that name."""
    arguments = ("*",) if "glob" in name else ()
    monkeypatch.chdir(tmp_path)
    Path("s3:", "bucket").mkdir(parents=True)
    Path("s3:", "bucket", "run").touch()
    with pytest.raises(UsageError, match="local files only") as caught:
        list(getattr(RUN, name)(*arguments))
    assert caught.value.subject == RUN


def test_a_common_folder_is_in_one_store():
    """Names of checkpoints are relative to it; between stores, or a store and a disk, there is none."""
    assert common_folder([RUN / "a" / "x", RUN / "b"]) == RUN
    assert common_folder([Path("/data/a"), Path("/data/b")]) == Path("/data")
    whole = StorePath("s3://bucket")
    assert common_folder([whole.parent]) == StorePath("s3:")
    for other in (StorePath("s3://other").parent, RUN):
        with pytest.raises(UsageError, match="a whole bucket is named beside others"):
            common_folder([whole.parent, other])
    for other in ("/data/a", "s3://other/run", "gs://bucket/run"):
        with pytest.raises(UsageError, match=r"is not in the store of s3://bucket/run"):
            common_folder([RUN, as_path(other)])


@pytest.mark.parametrize("address", ["s3://ckp*/run", "gs://b[12]/run", "s3://b?/run"])
def test_a_pattern_for_a_bucket_is_refused(address: str):
    """A store would be asked for it, and might answer that the credentials are wrong."""
    with pytest.raises(UsageError, match="no bucket has such a name"):
        as_path(address)
