"""Runs in a real store, SeaweedFS, by way of a proxy that does to answers what networks and stores do to them.

What comes out is the average, the same bytes as from a disk, or one error that names the object, and nothing.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ema_cli import Recipe, make_plan, open_run
from ema_cli import average as write_average
from ema_cli.errors import Unreadable
from ema_cli.storage.location import location
from ema_cli.storage.names import StorePath, anonymously, as_path
from ema_cli.storage.store import clients, listing, object_file, object_pieces, straight
from tests.conftest import Cli, Outcome
from tests.storage.conftest import KEY, SECRET
from tests.storage.proxy import Proxy, Request
from tests.storage.stores import obstore, put, put_folder

STEPS = (100, 200, 300)
LAW = ("--profile", "uniform")
COMPOSER = Path(__file__).parents[2] / "data" / "composer" / "every-batch"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for seconds instead of minutes, and keep nothing of the test before."""
    monkeypatch.setattr(clients, "SILENCE", timedelta(seconds=0.5))
    quick = {"init_backoff": timedelta(milliseconds=10), "max_backoff": timedelta(milliseconds=50), "base": 2}
    monkeypatch.setattr(clients, "_RETRY", {"max_retries": 3, "retry_timeout": timedelta(seconds=5), "backoff": quick})
    monkeypatch.setattr(object_file, "_kept", type(object_file._kept)())


@pytest.fixture(params=["obstore", "straight"])
def _either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the bytes of tensors come as obstore brings them, or over connections of ours."""
    if request.param == "straight":
        monkeypatch.setattr(object_pieces, "_LONG_BYTES", 1 << 16)
        monkeypatch.setattr(straight, "_refused_until", {})


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run of three files of 1.2 MB, `run`, and its average, `average.safetensors`."""
    folder = tmp_path_factory.mktemp("disk")
    (folder / "run").mkdir()
    for step in STEPS:
        generator = torch.Generator().manual_seed(step)
        tensors = {f"layer.{n}": torch.randn(320, 320, generator=generator) for n in range(3)}
        save_file(tensors, folder / "run" / f"step-{step}.safetensors")
    plan = make_plan(open_run(folder / "run"), Recipe(profile="uniform"))
    write_average(plan, folder / "average.safetensors")
    return folder


@pytest.fixture
def run(folder: StorePath, disk: Path) -> StorePath:
    """Return the address of the same run in a store."""
    put_folder(folder, {path.name: path.read_bytes() for path in (disk / "run").iterdir()})
    listing.forget_listings()
    return folder


def once(fault: str, *, of: str = "step-200", number: int = 0) -> Callable[[Request], str | None]:
    """Return a fault of one read of an object: of the first, whose number is 0, or a later one."""
    seen: list[Request] = []

    def decide(request: Request) -> str | None:
        if request.method != "GET" or of not in request.path:
            return None
        seen.append(request)
        return fault if len(seen) == number + 1 else None

    return decide


def always(fault: str, *, of: str = "step-200") -> Callable[[Request], str | None]:
    """Return a fault of every read of an object."""
    return lambda request: fault if request.method == "GET" and of in request.path else None


def average(cli: Cli, run: StorePath, tmp_path: Path, *more: str) -> Outcome:
    """Average a run into a file."""
    return cli("average", run, *LAW, "-o", tmp_path / "out.safetensors", "-q", *more)


def check_error(done: Outcome, run: StorePath, fact: str, tmp_path: Path) -> None:
    """Check that it is one error that names the object, that nothing was written, and that no secret shows."""
    assert done.code == 3, done
    assert done.err.startswith(f"error: {run}/step-200.safetensors: {fact}"), done.err
    assert len(done.err.splitlines()) <= 2
    assert KEY not in done.err
    assert SECRET not in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_inspect_takes_one_request_a_file(proxy: Proxy, run: StorePath, cli: Cli):
    """And one for the listing."""
    before = len(proxy.requests)
    done = cli("inspect", f"{run}/", *LAW)
    assert done.code == 0, done.err
    assert done.out.startswith(f"{run}: 3 checkpoints")
    assert len(proxy.requests) - before == 1 + len(STEPS)


@pytest.mark.usefixtures("_either_way")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "number"), [("cut", 0), ("cut", 1), ("stall", 1), ("503", 0), ("503", 1), ("429", 1), ("500", 1)]
)
def test_what_a_network_does_once_is_made_good(
    proxy: Proxy, run: StorePath, disk: Path, tmp_path: Path, cli: Cli, fault: str, number: int
):
    """A body that is cut or stalls, a store that is busy or fails: the average is the same."""
    proxy.fault = once(fault, number=number)
    assert average(cli, run, tmp_path).code == 0
    assert (tmp_path / "out.safetensors").read_bytes() == (disk / "average.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("look", ["info", "names"])
def test_a_listing_that_is_cut_is_asked_for_again(proxy: Proxy, run: StorePath, look: str):
    """Of all that lies below an address, and of one folder; one that is always cut is an error."""
    cuts = iter(["cut", "cut"])
    proxy.fault = lambda request: next(cuts, None) if "list-type" in request.path else None
    place = location(run if look == "info" else run.parent)
    assert getattr(place, look)()
    assert next(cuts, None) is None
    listing.forget_listings()
    proxy.fault = lambda request: "cut" if "list-type" in request.path else None
    with pytest.raises(Unreadable, match="cannot be looked into"):
        getattr(place, look)()


@pytest.mark.usefixtures("_either_way")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "fact"),
    [
        ("503", "cannot be read at byte 0: 503 Service Unavailable: this is a test"),
        ("429", "cannot be read at byte 0: 429 Too Many Requests: this is a test"),
        ("500", "cannot be read at byte 0: 500 Internal Server Error: this is a test"),
        ("416", "cannot be read at byte 0: 416"),
        ("stall", "cannot be read at byte 0: "),
        ("cut", "cannot be read at byte 0: "),
    ],
)
def test_what_lasts_is_one_error(proxy: Proxy, run: StorePath, tmp_path: Path, cli: Cli, fault: str, fact: str):
    """It names the object, and says what the store says."""
    proxy.fault = always(fault)
    check_error(average(cli, run, tmp_path), run, fact, tmp_path)


@pytest.mark.usefixtures("_either_way")
@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2], ids=["first-tensors", "later-tensors"])
@pytest.mark.parametrize("content", [b"other" * 250_000, b""], ids=["replaced", "deleted"])
def test_an_object_that_is_not_the_planned_one_is_one_error(
    proxy: Proxy, run: StorePath, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, number: int, content: bytes
):
    """Replaced or deleted after its header was read: bytes of two versions are never mixed."""
    for name in ("_STORED_BYTES", "_REQUEST_BYTES"):
        monkeypatch.setattr(f"ema_cli.folding.buffers.{name}", 1 << 17)
    step = once("now", number=number)

    def change(request: Request) -> str | None:
        if step(request):
            key = f"{run.key}/step-200.safetensors"
            client = clients.client_of(run)
            if content:
                clients.obstore().put(client, key, content)
            else:
                clients.obstore().delete(client, key)
        return None

    proxy.fault = change
    fact = "changed while it was used" if content else "disappeared while it was used"
    check_error(average(cli, run, tmp_path), run, fact, tmp_path)


@pytest.mark.usefixtures("_either_way")
@pytest.mark.slow
@pytest.mark.parametrize("stretch", [1 << 17, 1 << 23], ids=["requests", "one-request"])
def test_what_cannot_be_read_is_named_with_its_tensor(
    proxy: Proxy, run: StorePath, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, stretch: int
):
    """The object, the byte, what the store says, and the tensor; whether a request brings one block or many."""
    monkeypatch.setattr("ema_cli.folding.buffers._STORED_BYTES", 1 << 17)
    monkeypatch.setattr("ema_cli.folding.buffers._REQUEST_BYTES", stretch)

    def refuse(request: Request) -> str | None:
        begin, _, end = request.range.removeprefix("bytes=").partition("-")
        is_of_tensors = "step-200" in request.path and int(begin or 0) > 0 and int(end) - int(begin) > 1 << 16
        return "416" if is_of_tensors else None

    proxy.fault = refuse
    done = average(cli, run, tmp_path)
    check_error(done, run, "cannot be read at byte ", tmp_path)
    assert re.search(r"at byte \d+: 416 Range Not Satisfiable: this is a test, in 'layer\.\d'", done.err), done.err


@pytest.mark.slow
def test_an_average_is_verified_against_a_store(proxy: Proxy, run: StorePath, disk: Path, cli: Cli):
    """Made anew from there, byte for byte."""
    done = cli("verify", disk / "average.safetensors", "--against", run)
    assert done.code == 0, done.err
    assert "all bytes are those of 3 checkpoints averaged anew" in done.out


@pytest.mark.slow
def test_what_is_public_is_read_without_a_signature(
    proxy: Proxy, run: StorePath, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    """With `--anonymous` no request is signed, although there are credentials. This store is not public."""
    monkeypatch.setattr(clients, "_clients", {})
    before = len(proxy.requests)
    assert cli("inspect", run, *LAW).code == 0
    assert all(request.signed for request in proxy.requests[before:])
    monkeypatch.setattr(clients, "_clients", {})
    before = len(proxy.requests)
    refused = cli("inspect", run, *LAW, "--anonymous").err
    assert "403 Forbidden" in refused
    assert "hint:  it is not public: leave out --anonymous; credentials come from" in refused
    assert not any(request.signed for request in proxy.requests[before:])


@pytest.mark.slow
def test_signed_addresses_are_read_and_not_shown(proxy: Proxy, run: StorePath, disk: Path, tmp_path: Path, cli: Cli):
    """Of a web server single files are read; what signs them is in no output, no manifest and no error."""
    client, day = clients.client_of(run), timedelta(days=1)
    keys = [f"{run.key}/step-{step}.safetensors" for step in STEPS]
    signed = [clients.obstore().sign(client, "GET", key, day) for key in keys]
    done = cli("average", *signed, *LAW, "-o", tmp_path / "out.safetensors")
    assert done.code == 0, done.err
    assert (tmp_path / "out.safetensors").read_bytes() == (disk / "average.safetensors").read_bytes()
    bad = cli("inspect", signed[0].replace("X-Amz-Signature=", "X-Amz-Signature=0"))
    assert bad.code in (2, 3)
    assert "X-Amz" in signed[0]
    assert "X-Amz" not in (tmp_path / "out.safetensors.manifest.json").read_text() + done.err + done.out + bad.err


@pytest.mark.slow
def test_a_wrong_secret_is_an_error_with_a_way_on(
    proxy: Proxy, run: StorePath, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    """It names where credentials come from, and shows none."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    monkeypatch.setattr(clients, "_clients", {})
    done = cli("inspect", run, *LAW)
    assert done.code == 3
    assert "403 Forbidden" in done.err
    assert "AWS_ACCESS_KEY_ID" in done.err
    assert "--anonymous" in done.err
    assert "wrong-secret" not in done.err


def test_a_store_that_cannot_be_reached_is_an_error_with_a_way_on(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    """Where nobody listens, the setting that names the server may be wrong."""
    settings = {"ENDPOINT_URL": "http://127.0.0.1:1", "ACCESS_KEY_ID": KEY, "SECRET_ACCESS_KEY": SECRET}
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setattr(clients, "_clients", {})
    done = cli("inspect", "s3://ckpts/run", "--no-cache")
    assert done.code == 3
    assert "\nhint:  nobody answered: look at the network, and at AWS_ENDPOINT_URL" in done.err


@pytest.mark.parametrize("address", ["s3://b/run", "az://b/run", "abfss://b@account.dfs.core.windows.net/run"])
def test_without_a_signature_none_is_made_of_what_the_environment_has(address: str, monkeypatch: pytest.MonkeyPatch):
    """Of Azure's own addresses, too: --anonymous was not heeded there."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AZURE_STORAGE_ACCOUNT_NAME"):
        monkeypatch.setenv(name, "name")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")
    monkeypatch.setattr(clients, "_clients", {})
    path = as_path(address)
    assert isinstance(path, StorePath)
    unsigned = anonymously(path)
    assert isinstance(unsigned, StorePath)
    assert clients.client_of(unsigned).config.get("skip_signature") == "true"
    assert clients.client_of(path).config.get("skip_signature") is None


def test_an_account_of_azure_that_nobody_names_is_an_error_with_a_way_on(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    """The words are obstore's, the variable ours."""
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    done = cli("inspect", "az://box/run")
    assert (done.code, "Account must be specified" in done.err) == (3, True), done
    assert "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY" in done.err


def test_what_a_server_says_is_told_without_what_signs():
    """It may name the address that was asked for."""
    said = "status code: 403 Forbidden: <Message>http://host/x?X-Amz-Signature=abc has expired</Message>"
    assert clients.reason_of(ValueError(said)) == "403 Forbidden: http://host/x?... has expired"


@pytest.mark.slow
def test_a_store_that_refuses_an_output_says_what_to_set(
    proxy: Proxy, folder: StorePath, disk: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    """In the words of the command line."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    monkeypatch.setattr(clients, "_clients", {})
    done = cli("average", disk / "run", *LAW, "-o", folder / "out")
    assert done.code == 5
    assert done.err.endswith("; what is public is read with --anonymous\n")


@pytest.mark.full
def test_whatever_happens_it_is_the_average_or_an_error(
    proxy: Proxy, run: StorePath, disk: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    """Hundreds of runs with faults of all kinds, anywhere."""
    for name in ("_STORED_BYTES", "_REQUEST_BYTES"):
        monkeypatch.setattr(f"ema_cli.folding.buffers.{name}", 1 << 17)
    right = (disk / "average.safetensors").read_bytes()
    outcomes = []
    for seed in range(200):
        draw = random.Random(seed)
        kinds = ("cut", "503", "429", "500", "416") + (("stall",) if seed % 10 == 0 else ())
        share = draw.choice((0.02, 0.1, 0.4))
        proxy.fault = lambda _, draw=draw, kinds=kinds, share=share: (
            draw.choice(kinds) if draw.random() < share else None
        )
        monkeypatch.setattr(object_file, "_kept", type(object_file._kept)())
        done = average(cli, run, tmp_path, "--force")
        outcomes.append(done.code)
        assert done.code in (0, 3), done
        if done.code == 0:
            assert (tmp_path / "out.safetensors").read_bytes() == right
        else:
            assert str(run) in done.err
            assert len(done.err.splitlines()) <= 2
    assert set(outcomes) == {0, 3}


@pytest.mark.slow
def test_what_lies_beside_a_signed_file_needs_no_signature(proxy: Proxy, folder: StorePath, tmp_path: Path, cli: Cli):
    """A bucket answers 403 for what is not there. Signatures are shown nowhere; where one is wrong that is an error."""
    paths = [folder / path.name for path in sorted(COMPOSER.glob("*.pt"))[:3]]
    for path in paths:
        put(path, (COMPOSER / path.name).read_bytes())
    urls = [obstore.sign(clients.client_of(path), "GET", path.key, timedelta(hours=1)) for path in paths]
    done = cli("average", *urls, "--profile", "uniform", "-o", tmp_path / "release")
    assert done.code == 0, done.err
    written = "".join(path.read_text(errors="replace") for path in (tmp_path / "release").rglob("*") if path.is_file())
    wrong = cli("inspect", f"{urls[0]}x")
    assert (wrong.code, "403" in wrong.err) == (3, True)
    assert "Signature" not in written + done.out + done.err + wrong.out + wrong.err.replace("request signature", "")


@pytest.mark.parametrize("value", ["http://other:8333", ""])
@pytest.mark.parametrize("name", ["AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
def test_one_server_is_asked_whatever_other_variables_hold(name: str, value: str, monkeypatch: pytest.MonkeyPatch):
    """The variables have an order. obstore takes the last it finds, and an empty one, too, at which it breaks off."""
    order = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"]
    for each in order:
        monkeypatch.delenv(each, raising=False)
    first = next(each for each in order if each != name)
    monkeypatch.setenv(first, "http://host:8333/")
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(clients, "_clients", {})
    path = as_path("s3://bucket/run")
    assert isinstance(path, StorePath)
    expected = value if value and order.index(name) < order.index(first) else "http://host:8333"
    assert clients.client_of(path).config["endpoint"] == expected


def test_an_address_of_a_server_that_is_empty_is_an_error_that_names_the_variable(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    """obstore broke off, with a traceback."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "")
    monkeypatch.setattr(clients, "_clients", {})
    listing.forget_listings()
    done = cli("inspect", "s3://bucket/run", "--no-cache")
    assert (done.code, "AWS_ENDPOINT_URL holds no address of a server" in done.err) == (2, True), done
