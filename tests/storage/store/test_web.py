"""Models on a web server, which does not list: their files are named, or the list of their shards is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import Cli
from tests.storage.loopback import Answer, Handler, serving
from tests.storage.stores import obstore

assert obstore
NAME = "model.safetensors.index.json"


@dataclass
class _Web:
    """Files below a folder, by range; with a `word` only to those who know it, and 403 for what is not there.

    Attributes:
        facts: what answers tell of a file.
        modified: when files were modified, by path; under "" of all others.
        before: called with the path and the range of a request before it is answered.
    """

    folder: Path
    word: str = ""
    facts: tuple[str, ...] = ("ETag", "Last-Modified")
    modified: dict[str, str] = field(default_factory=lambda: {"": "Mon, 01 Jan 2024 00:00:00 GMT"})
    before: Callable[[str, str], None] = lambda path, wanted: None
    has_ranges: bool = True
    requests: list[str] = field(default_factory=list)
    address: str = ""


class _Handler(Handler):
    web: _Web

    def handle_any(self) -> None:
        """Answer a range of a file."""
        web, url, asked = self.web, urlsplit(self.path), self.headers.get("Range", "")
        web.requests.append(url.path)
        web.before(url.path, asked)
        file = web.folder / url.path.removeprefix("/")
        if not file.is_file() or web.word not in url.query:
            self.give(Answer(403 if web.word else 404))
            return
        data, wanted = file.read_bytes(), re.fullmatch(r"bytes=(\d+)-(\d+)", asked)
        modified = web.modified.get(url.path, web.modified[""])
        facts = {"ETag": f'"{hash(data)}"', "Last-Modified": modified}
        facts = {name: value for name, value in facts.items() if name in web.facts}
        if wanted is None or not web.has_ranges:
            self.give(Answer(200, data, facts))
            return
        begin, end = int(wanted[1]), min(int(wanted[2]) + 1, len(data))
        facts["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
        self.give(Answer(206, data[begin:end], facts))


@pytest.fixture
def web(tmp_path: Path, nothing_known: None) -> Iterator[_Web]:
    """Return a server that has what lies in `tmp_path`."""
    web = _Web(tmp_path)
    with serving(_Handler, web=web) as web.address:
        yield web


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a folder with two models in two shards each."""
    for step in (100, 200):
        folder = tmp_path / "run" / f"step-{step}"
        folder.mkdir(parents=True)
        tensors = {f"w{number}": torch.full((50, 50), float(step + number)) for number in range(2)}
        names = [f"model-0000{number + 1}-of-00002.safetensors" for number in range(2)]
        for name, (tensor, value) in zip(names, tensors.items(), strict=True):
            save_file({tensor: value}, folder / name)
        index = {"metadata": {}, "weight_map": dict(zip(tensors, names, strict=True))}
        (folder / NAME).write_text(json.dumps(index))
        (folder / "config.json").write_text('{"architectures": ["A"], "model_type": "a"}')
    return tmp_path / "run"


@pytest.mark.parametrize("word", ["", "sig=secret"])
def test_the_list_of_its_shards_names_a_model(web: _Web, run: Path, tmp_path: Path, cli: Cli, word: str):
    """The average is that from a disk, with its configuration; what signs the list is for its shards, and not shown."""
    web.word = word
    query = f"?{word}" if word else ""
    address = f"{web.address}/run"
    law = ("--profile", "uniform")
    done = cli("average", *(f"{address}/step-{n}/{NAME}{query}" for n in (100, 200)), *law, "-o", tmp_path / "there")
    assert done.code == 0, done.err
    assert cli("average", run, *law, "-o", tmp_path / "here").code == 0
    here, there = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if "manifest" not in path.name}
        for name in ("here", "there")
    )
    assert here.keys() == there.keys()
    for name in here.keys() - {"SHA256SUMS"}:
        assert here[name] == there[name], name
    assert "secret" not in done.out + done.err + (tmp_path / "there" / "ema-manifest.json").read_text()
    first = "/run/step-100/model-00001-of-00002.safetensors"
    assert web.requests.count(first) == 1  # it is small: its header came with all of it


@pytest.mark.slow
def test_workers_know_what_signs_an_address(web: _Web, run: Path, tmp_path: Path, cli: Cli):
    """A process that does tasks for this one reads by the same signed addresses; nothing shows them."""
    web.word = "sig=secret"
    names = [f"{web.address}/run/step-{n}/{NAME}?sig=secret" for n in (100, 200)]
    done = cli("average", *names, "--profile", "uniform", "-o", tmp_path / "there", "--on", "processes=1")
    assert done.code == 0, done.err
    assert "secret" not in done.out + done.err + (tmp_path / "there" / "ema-manifest.json").read_text()


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("[1]", "is no list of shards"),
        ('{"weight_map": {"w": "../x.safetensors"}}', "names a shard that is no file beside it"),
        ('{"weight_map": {"w": "gone.safetensors"}}', "gone.safetensors: does not exist"),
    ],
)
def test_a_list_that_is_none_is_an_error(web: _Web, run: Path, cli: Cli, text: str, fact: str):
    """Nothing outside the folder is asked for."""
    (run / "step-100" / NAME).write_text(text)
    done = cli("inspect", f"{web.address}/run/step-100/{NAME}")
    assert done.code in (2, 3), done
    assert fact in done.err
    assert not any("x.safetensors" in path for path in web.requests)


@pytest.mark.parametrize("fact", ["ETag", "Last-Modified"])
def test_one_fact_tells_a_file_from_another(web: _Web, run: Path, cli: Cli, fact: str):
    """Either of the two."""
    web.facts = (fact,)
    done = cli("average", *addresses(web), "--profile", "uniform", "-o", run.parent / "a.safetensors")
    assert done.code == 0, done.err


def test_a_server_that_sends_no_ranges_is_not_read(web: _Web, run: Path, cli: Cli):
    """It is said, and nothing is written."""
    web.has_ranges = False
    done = cli("average", *addresses(web), "--profile", "uniform", "-o", run.parent / "a.safetensors")
    assert done.code == 3
    assert done.err.startswith(f"error: {addresses(web)[0]}: cannot be read: "), done.err
    assert "cannot be read: it sends no ranges of a file\nhint:  copy what is there to a disk" in done.err
    assert not (run.parent / "a.safetensors").exists()


def test_a_server_that_tells_no_version_is_not_read(web: _Web, run: Path, cli: Cli):
    """Else the bytes of two versions might be mixed, and nobody would know."""
    web.facts = ()
    done = cli("average", *addresses(web), "--profile", "uniform", "-o", run.parent / "a.safetensors")
    assert done.code == 3
    assert "neither ETag nor Last-Modified" in done.err
    assert done.err.endswith("hint:  download it, and name the path\n")


def addresses(web: _Web) -> list[str]:
    """Return the addresses of one shard of both models."""
    name = "model-00001-of-00002.safetensors"
    return [f"{web.address}/run/step-{step}/{name}" for step in (100, 200)]


@pytest.mark.parametrize("fact", ["ETag", "Last-Modified"])
def test_what_is_replaced_while_it_is_read_is_an_error(web: _Web, tmp_path: Path, cli: Cli, fact: str):
    """Known by either of the two: no bytes of two versions are mixed."""
    web.facts = (fact,)
    for step in (100, 200):
        save_file({"w": torch.full((400_000,), float(step))}, tmp_path / f"step-{step}.safetensors")
    other = (tmp_path / "step-100.safetensors").read_bytes()

    def replace(path: str, wanted: str) -> None:
        if path.endswith("step-200.safetensors") and not wanted.startswith("bytes=0-"):
            (tmp_path / "step-200.safetensors").write_bytes(other)
            web.modified = {**web.modified, path: "Mon, 01 Jan 2024 00:00:01 GMT"}

    web.before = replace
    named = [f"{web.address}/step-{step}.safetensors" for step in (100, 200)]
    done = cli("average", *named, "--profile", "uniform", "-o", tmp_path / "out.safetensors")
    assert done.code == 3, done
    assert "step-200.safetensors: changed while it was used" in done.err
    assert not (tmp_path / "out.safetensors").exists()
