"""What comes over connections of ours, without TLS, and how obstore takes over where it does not come well."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from weakref import WeakSet

import pytest
import torch
from safetensors.torch import save_file

from ema_cli.folding import buffers, feed
from ema_cli.folding.block_task import SumsLost
from ema_cli.folding.buffers import Arrival, arrival
from ema_cli.folding.kernel import BlockSums
from ema_cli.folding.kernel.choice import chosen_kernel
from ema_cli.folding.kernel.numpy_kernel import NUMPY
from ema_cli.folding.reading import FoldReader
from ema_cli.runs.run import open_run
from ema_cli.storage.names import StorePath, as_path
from ema_cli.storage.store import listing, object_file, object_pieces, straight
from ema_cli.storage.store.clients import is_plain
from ema_cli.storage.store.object_file import ObjectFile
from ema_cli.storage.store.object_pieces import ObjectPieces
from tests.conftest import Cli
from tests.storage.loopback import Answer, Handler, serving
from tests.storage.stores import obstore

assert obstore
_KIB = 1 << 10


@dataclass
class _Server:
    """Files in a folder, by range, each with an ETag, and what is done to requests of ours.

    Attributes:
        status, headers: those of answers to us, in place of the right ones; a header that is empty is left out.
        cut: of a file's bytes, so many of an answer to us are sent before the connection ends; one after another.
        is_silent: whether the connection stays open where a body is cut.
        ours, others: the ranges that were asked for, by us and by obstore.
    """

    folder: Path
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut: dict[str, list[int]] = field(default_factory=dict)
    is_silent: bool = False
    ours: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    address: str = ""


class _Handler(Handler):
    server_: _Server
    ends_after: int | None = None

    def handle_any(self) -> None:
        """Answer a range of a file, or the whole."""
        server, asked = self.server_, self.headers.get("Range", "")
        data = (server.folder / self.path.removeprefix("/")).read_bytes()
        headers = {"ETag": f'"{len(data)}"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", asked)
        begin, end = (int(wanted[1]), min(int(wanted[2]) + 1, len(data))) if wanted else (0, len(data))
        if wanted:
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
        status = 206 if wanted else 200
        if "User-Agent" in self.headers:  # http.client says nothing of itself
            server.others.append(asked)
        else:
            server.ours.append(asked)
            status = server.status or status
            headers = {name: value for name, value in {**headers, **server.headers}.items() if value}
            if server.cut.get(self.path) and end - begin > server.cut[self.path][0]:
                self.ends_after = server.cut[self.path].pop(0)
        self.give(Answer(status, data[begin:end], headers))
        if self.ends_after is not None and not server.is_silent:
            self.close_connection = True

    def give_body(self, body: bytes) -> None:
        """Send a body, or its beginning."""
        self.wfile.write(body[: self.ends_after])


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_known: None) -> Iterator[_Server]:
    """Return a server that has what lies in `tmp_path`; short answers come over connections of ours, too."""
    monkeypatch.setattr(object_pieces, "_LONG_BYTES", 16 * _KIB)
    monkeypatch.setattr(straight, "_refused_until", {})
    monkeypatch.setattr(straight, "_answers_us", {})
    monkeypatch.setattr(object_pieces, "_streams", WeakSet())
    server = _Server(tmp_path)
    with serving(_Handler, server_=server) as server.address:
        yield server


@pytest.fixture
def data(tmp_path: Path) -> bytes:
    """Return the bytes of `data.bin`, 3 MB."""
    data = random.Random(0).randbytes(3_000_000)
    (tmp_path / "data.bin").write_bytes(data)
    return data


def opened(server: _Server) -> ObjectFile:
    """Return `data.bin`, opened; nothing has been asked for since."""
    path = as_path(f"{server.address}/data.bin")
    assert isinstance(path, StorePath)
    file = ObjectFile.of(path)
    server.ours.clear()
    server.others.clear()
    return file


def received(pieces: object, *sizes: int) -> bytes:
    """Return what comes, in pieces of these sizes and then as they come."""
    assert isinstance(pieces, ObjectPieces)
    return b"".join([*(bytes(pieces.receive(size)) for size in sizes), *map(bytes, pieces)])


def lengths_of(asked: Sequence[str]) -> list[int]:
    """Return how many bytes ranges have."""
    return [int(end) + 1 - int(begin) for begin, end in re.findall(r"bytes=(\d+)-(\d+)", " ".join(asked))]


@pytest.mark.parametrize(("begin", "end"), [(0, 3_000_000), (1000, 2_000_001), (2_500_000, 3_000_000)])
def test_bytes_come_over_one_connection_of_ours(server: _Server, data: bytes, begin: int, end: int):
    """Of the whole object, and of a part; in pieces of the sizes that are asked for."""
    pieces = opened(server).pieces(begin, end)
    assert received(pieces, 70_000, 1) == data[begin:end]
    assert server.ours == ["" if (begin, end) == (0, 3_000_000) else f"bytes={begin}-{end - 1}"]
    assert server.others == []


def test_what_follows_is_read_from_the_descriptor(server: _Server, data: bytes):
    """Once something has been received, its next bytes are the next of the object; there is one only over ours."""
    pieces = opened(server).pieces(1000, 2_000_000)
    assert pieces.descriptor is None
    found = bytes(pieces.receive(9000))
    assert pieces.descriptor is not None
    rest = os.read(pieces.descriptor, 50_000)
    pieces.skip(len(rest))
    assert found + rest + received(pieces) == data[1000:2_000_000]
    assert (len(server.ours), server.others) == (1, [])
    assert pieces.descriptor is None


REFUSALS = {
    "forbidden": (403, {}),
    "busy": (503, {}),
    "redirected": (307, {"Location": "/elsewhere"}),
    "without-the-range": (200, {}),
    "of-another-object": (0, {"ETag": '"other"'}),
    "without-a-tag": (0, {"ETag": ""}),
    "of-another-range": (0, {"Content-Range": "bytes 0-1999998/3000000"}),
    "of-another-size": (0, {"Content-Range": "bytes 1000-1999999/4000000"}),
}


@pytest.mark.parametrize(("status", "headers"), REFUSALS.values(), ids=REFUSALS)
def test_an_answer_that_is_not_the_one_that_was_asked_for_is_left_to_obstore(
    server: _Server, data: bytes, status: int, headers: dict[str, str]
):
    """And so is all else of that server for a minute: it may have had enough of us, or know other signatures."""
    file = opened(server)
    server.status, server.headers = status, headers
    for _ in range(2):
        assert received(file.pieces(1000, 2_000_000)) == data[1000:2_000_000]
    assert len(server.ours) == 1
    assert server.others == ["bytes=1000-1999999"] * 2


def test_after_a_minute_we_ask_again(server: _Server, data: bytes, monkeypatch: pytest.MonkeyPatch):
    """What a store refuses while it is busy it may give later."""
    file = opened(server)
    server.status = 503
    assert received(file.pieces(0, 2_000_000)) == data[:2_000_000]
    server.status = 0
    monkeypatch.setattr(straight, "_refused_until", {key: at - 61 for key, at in straight._refused_until.items()})
    assert received(file.pieces(0, 2_000_000)) == data[:2_000_000]
    assert (len(server.ours), len(server.others)) == (2, 1)


def test_where_no_answer_comes_we_ask_no_more_for_a_minute(
    server: _Server, data: bytes, monkeypatch: pytest.MonkeyPatch
):
    """A server that cannot be reached so, or says nothing, is not waited for at each request."""
    tries = list[object]()

    def connect(connection: object) -> None:
        tries.append(connection)
        raise TimeoutError

    monkeypatch.setattr(straight.HTTPConnection, "connect", connect)
    file = opened(server)
    for _ in range(2):
        assert received(file.pieces(0, 2_000_000)) == data[:2_000_000]
    assert (len(tries), len(server.others)) == (1, 2)


@pytest.mark.parametrize("where", ["between-headers", "in-a-header"])
def test_headers_that_stop_for_a_while_do_not_end_there(
    server: _Server, data: bytes, monkeypatch: pytest.MonkeyPatch, where: str
):
    """Where all that is looked at has come, the rest of the headers is not taken for the first bytes of the object."""
    monkeypatch.setattr("ema_cli.storage.store.clients.SILENCE", timedelta(seconds=0.1))
    file, real = opened(server), _Handler.give
    first, rest = {"between-headers": ("", "X-More: 1\r\n"), "in-a-header": ("X-Mo", "re: 1\r\n")}[where]

    def give(handler: _Handler, answer: Answer) -> None:
        if "User-Agent" in handler.headers:
            real(handler, answer)
            return
        headers = {**answer.headers, "Content-Length": str(len(answer.body))}
        lines = [f"HTTP/1.1 {answer.status} Found", *(f"{name}: {value}" for name, value in headers.items()), first]
        with suppress(OSError):  # we are gone
            handler.wfile.write("\r\n".join(lines).encode())
            time.sleep(0.15)
            handler.wfile.write(f"{rest}\r\n".encode() + answer.body)

    monkeypatch.setattr(_Handler, "give", give)
    assert received(file.pieces(1000, 2_000_000)) == data[1000:2_000_000]
    assert (len(server.ours), len(server.others)) == (1, 1)


def test_obstore_takes_over_a_few_requests_and_piece_by_piece_what_more_there_is(
    server: _Server, data: bytes, monkeypatch: pytest.MonkeyPatch
):
    """Each of its answers that is under way takes memory; as soon as one has ended, another may be."""
    monkeypatch.setattr(object_pieces, "_MOST_STREAMS", 2)
    file, server.status = opened(server), 503
    several = [file.pieces(at, 2_000_000) for at in (0, 1, 2, 3)]
    came = [[bytes(each.receive(300_000))] for each in several]
    assert [len(first) for [first] in came[2:]] == [300_000] * 2
    assert server.others == [f"bytes={at}-{end}" for at, end in [(0, 1999999), (1, 1999999), (2, 300001), (3, 300002)]]
    for each, pieces in zip(several, came, strict=True):
        assert b"".join([*pieces, *map(bytes, each)]) == data[several.index(each) : 2_000_000]
    assert server.others[4:] == ["bytes=300002-1999999", "bytes=300003-1999999"]


def test_what_is_signed_for_tls_is_not_sent_without(server: _Server, data: bytes, monkeypatch: pytest.MonkeyPatch):
    """Whoever listens could use the signature."""
    monkeypatch.setattr(straight, "_address", lambda path: str(path).replace("http:", "https:"))
    assert received(opened(server).pieces(0, 2_000_000)) == data[:2_000_000]
    assert (len(server.ours), len(server.others)) == (0, 1)


@pytest.mark.parametrize("is_silent", [False, True], ids=["ends", "falls-silent"])
@pytest.mark.parametrize("cut", [0, 1, 70_000, 1_999_999])
def test_where_a_body_is_cut_obstore_goes_on(
    server: _Server, data: bytes, monkeypatch: pytest.MonkeyPatch, cut: int, *, is_silent: bool
):
    """At the first byte that no piece has, also after a silence. The next request is over a connection of ours."""
    monkeypatch.setattr("ema_cli.storage.store.clients.SILENCE", timedelta(seconds=0.1))
    file = opened(server)
    server.cut, server.is_silent = {"/data.bin": [cut]}, is_silent
    assert received(file.pieces(0, 2_000_000), 50_000) == data[:2_000_000]
    [rest] = server.others
    assert rest in [f"bytes={at}-1999999" for at in (0, 50_000, 50_000 + 3 * (1 << 19))]
    assert received(file.pieces(0, 2_000_000)) == data[:2_000_000]
    assert (len(server.ours), len(server.others)) == (2, 1)


@pytest.mark.parametrize("most", ["4194304", "212992", None])
def test_the_system_holds_more_where_a_program_may_ask_for_that(
    server: _Server, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: str | None
):
    """Where it may not, asking would leave less than the system gives by itself."""
    (tmp_path / "rmem_max").write_text(most or "") if most else None
    monkeypatch.setattr(straight, "_MOST_HELD", tmp_path / "rmem_max")
    straight._may_hold_much.cache_clear()
    try:
        assert straight._may_hold_much() is (most == "4194304")
        assert received(opened(server).pieces(0, 3_000_000)) == data
    finally:
        straight._may_hold_much.cache_clear()
    assert len(server.ours) == 1


@pytest.mark.parametrize(
    ("address", "setting", "expected"),
    [
        ("http://host/a.bin", ("", ""), True),
        ("https://host/a.bin", ("", ""), False),
        ("s3://bucket/a", ("AWS_ENDPOINT_URL", "http://host:8333"), True),
        ("s3://bucket/a", ("AWS_ENDPOINT_URL", "https://host"), False),
        ("s3://bucket/a", ("", ""), False),
        ("gs://bucket/a", ("", ""), False),
        ("memory://bucket/a", ("", ""), False),
        ("http://host/a.bin", ("http_proxy", "http://proxy"), False),
        ("http://host/a.bin", ("ALL_PROXY", "http://proxy"), False),
    ],
)
def test_only_what_comes_without_tls_and_from_the_server_itself_is_plain(
    address: str, setting: tuple[str, str], monkeypatch: pytest.MonkeyPatch, *, expected: bool
):
    """TLS and proxies are obstore's business."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    if setting[0]:
        monkeypatch.setenv(*setting)
    path = as_path(address)
    assert isinstance(path, StorePath)
    assert is_plain(path) is expected


def test_what_is_not_signed_is_not_plain(monkeypatch: pytest.MonkeyPatch):
    """To sign it nevertheless takes credentials, for which obstore may ask a machine that does not answer."""
    path = as_path("s3://bucket/a")
    assert isinstance(path, StorePath)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://host")
    assert is_plain(path)
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    assert not is_plain(path)


STEPS = (100, 200, 300)


@pytest.fixture
def run(server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the addresses of three files of 1.2 MB; blocks are of 32 KiB, and a request goes on over many."""
    monkeypatch.setattr(buffers, "_STORED_BYTES", 32 * _KIB)
    monkeypatch.setattr(buffers, "_REQUEST_BYTES", 512 * _KIB)
    monkeypatch.setattr(feed, "_SOON_BYTES", 40 * _KIB)
    monkeypatch.setattr(object_pieces, "_LONG_PIECE_BYTES", 32 * _KIB)
    for step in STEPS:
        generator = torch.Generator().manual_seed(step)
        tensors = {f"w{n}": torch.randn(320, 320, generator=generator) for n in range(3)}
        save_file({**tensors, "n": torch.tensor([step])}, tmp_path / f"step-{step}.safetensors")
    return [f"{server.address}/step-{step}.safetensors" for step in STEPS]


@pytest.fixture
def expected(run: list[str], tmp_path: Path, cli: Cli) -> bytes:
    """Return the average of the run on a disk."""
    files = [tmp_path / f"step-{step}.safetensors" for step in STEPS]
    assert cli("average", *files, "--profile", "uniform", "-o", tmp_path / "here.safetensors").code == 0
    return (tmp_path / "here.safetensors").read_bytes()


@pytest.mark.parametrize("status", [0, 403])
def test_a_store_is_asked_once_whether_it_lets_us_read(server: _Server, run: list[str], tmp_path: Path, status: int):
    """For a byte: what it refuses would have to come over obstore's connections, of which fewer are made."""
    server.status = status
    checkpoints = open_run(run).checkpoints
    server.ours.clear()
    for _ in range(2):
        assert arrival(checkpoints) is (Arrival.PIECES if status else Arrival.STRAIGHT)
    assert server.ours == ["bytes=0-0"]


def test_a_store_that_refuses_us_is_asked_no_more_and_no_request_is_cut_in_pieces(
    server: _Server, data: bytes, monkeypatch: pytest.MonkeyPatch
):
    """It may answer whole objects alone, as some do."""
    monkeypatch.setattr(object_pieces, "_MOST_STREAMS", 0)
    monkeypatch.setattr(straight, "_refused_until", {})
    file, server.status = opened(server), 403
    assert not straight.answers_us(file.path, file.stored)
    straight._refused_until.clear()
    assert received(file.pieces(0, 3_000_000), 10) == data
    assert (server.ours, server.others) == (["bytes=0-0"], [""])


@pytest.mark.parametrize("what", ["all", "cut", "refused"])
def test_very_many_checkpoints_come_in_long_requests(
    server: _Server, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, what: str
):
    """Each over many blocks, whose bytes are those of a disk; also where answers are cut, or refused later on."""
    monkeypatch.setattr(buffers, "_STORED_BYTES", 8 * _KIB)
    monkeypatch.setattr(buffers, "_REQUEST_BYTES", 64 * _KIB)
    monkeypatch.setattr(object_pieces, "_PIECE_BYTES", 4 * _KIB)
    for module in (listing, object_file):  # what is as short as a header is kept, and not asked for again
        monkeypatch.setattr(module, "FIRST_BYTES", 16 * _KIB)
    names = [f"step-{number}.safetensors" for number in range(1, 51)]
    for number, name in enumerate(names):
        generator = torch.Generator().manual_seed(number)
        save_file({f"w{n}": torch.randn(90, 90, generator=generator) for n in range(4)}, tmp_path / name)
    here, there = tmp_path / "here.safetensors", tmp_path / "there.safetensors"
    assert cli("average", *(tmp_path / name for name in names), "--profile", "uniform", "-o", here).code == 0
    chance, real = random.Random(0), _Handler.handle_any
    if what == "cut":
        server.cut = {f"/{name}": [chance.randrange(1, 120_000)] for name in names[::7]}

    def refuse(handler: _Handler) -> None:
        server.status = 503 if len(server.ours) > 60 else 0
        real(handler)

    monkeypatch.setattr(_Handler, "handle_any", refuse if what == "refused" else real)
    done = cli("average", *(f"{server.address}/{name}" for name in names), "--profile", "uniform", "-o", there)
    assert done.code == 0, done.err
    assert there.read_bytes() == here.read_bytes()
    if what == "all":
        assert len(server.ours) <= 1 + 3 * 50
        assert max(lengths_of(server.others)) <= 16 * _KIB  # headers, and the samples that tell files apart
    elif what == "refused":
        assert 60 < len(server.ours) < 60 + 50


@pytest.mark.parametrize("kernel", ["any", "numpy"])
def test_a_fold_asks_obstore_for_headers_alone(
    server: _Server,
    run: list[str],
    expected: bytes,
    tmp_path: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    kernel: str,
):
    """Whether the kernel receives the bytes of a block itself, or another thread does: they are those of a disk."""
    if kernel == "numpy":
        monkeypatch.setenv("EMA_KERNEL", "numpy")
    done = cli("average", *run, "--profile", "uniform", "-o", tmp_path / "out.safetensors")
    assert done.code == 0, done.err
    assert (tmp_path / "out.safetensors").read_bytes() == expected
    assert len(server.ours) >= 3 * 2
    assert sum(lengths_of(server.others)) < 3 * 320 * _KIB  # with the samples that tell files apart


@pytest.mark.parametrize("is_silent", [False, True], ids=["ends", "falls-silent"])
@pytest.mark.parametrize("seed", range(4))
def test_a_block_that_does_not_come_is_begun_again(
    server: _Server, run: list[str], expected: bytes, tmp_path: Path, cli: Cli,
    monkeypatch: pytest.MonkeyPatch, seed: int, *, is_silent: bool,
):  # fmt: skip
    """Wherever bodies are cut, of one checkpoint or of all: what was added of the block is forgotten."""
    monkeypatch.setattr("ema_cli.storage.store.clients.SILENCE", timedelta(seconds=0.1))
    chance = random.Random(seed)
    where = {f"/step-{step}.safetensors": [chance.randrange(500 * _KIB) for _ in range(2)] for step in STEPS}
    server.cut, server.is_silent = where, is_silent
    done = cli("average", *run, "--profile", "uniform", "-o", tmp_path / "out.safetensors")
    assert done.code == 0, done.err
    assert (tmp_path / "out.safetensors").read_bytes() == expected
    assert sum(map(len, where.values())) < 6


def test_what_is_read_again_for_a_block_that_is_begun_again_counts_once(
    server: _Server, run: list[str], tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    """Where two checkpoints are added at a time, and the third one's bytes do not come: those of the first two had."""
    monkeypatch.setattr(buffers, "_STORE_ROWS", 2)
    monkeypatch.setattr(buffers, "_MOST_CONNECTIONS", 3)  # one thread
    monkeypatch.setattr(buffers, "_CONNECTIONS", {Arrival.STRAIGHT: 3})
    lost, real = list[Sequence[int]](), FoldReader.receive_and_add

    def receive_and_add(reader: FoldReader, sums: BlockSums, numbers: Sequence[int], *more: Sequence[int]) -> None:
        try:
            real(reader, sums, numbers, *more)
        except SumsLost:
            lost.append(list(numbers))
            raise

    monkeypatch.setattr(FoldReader, "receive_and_add", receive_and_add)
    server.cut = {"/step-100.safetensors": [200 * _KIB]}
    done = cli("average", *run, "--profile", "uniform", "--json", "-o", tmp_path / "out.safetensors")
    assert done.code == 0, done.err
    assert lost == ([[0]] if chosen_kernel().kernel is not NUMPY else [])
    assert done.json["written"]["bytes_read"] == 3 * 3 * 320 * 320 * 4 + 8


def test_what_is_not_there_when_the_rest_is_asked_for_is_an_error(
    server: _Server, run: list[str], tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    """A body is cut, and another object has taken its place: nothing of the two is mixed."""
    real = _Handler.give_body

    def replace(handler: _Handler, body: bytes) -> None:
        real(handler, body)
        if handler.ends_after is not None:
            (tmp_path / "other").write_bytes(b"x" * 2_000_000)
            (tmp_path / "other").replace(tmp_path / "step-200.safetensors")  # at once: never an empty one

    monkeypatch.setattr(_Handler, "give_body", replace)
    server.cut = {"/step-200.safetensors": [200 * _KIB]}
    done = cli("average", *run, "--profile", "uniform", "-o", tmp_path / "out.safetensors")
    assert (done.code, f"error: {run[1]}: changed while it was used" in done.err) == (3, True), done.err
    assert not (tmp_path / "out.safetensors").exists()
