"""Watching a run in a store, and averages and what is kept in one: the same bytes as on a disk."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import count, product
from pathlib import Path
from typing import Any

import pytest

from ema_cli import watch
from ema_cli.errors import EmaError, OutputError, RunError
from ema_cli.manifest.manifest import read_manifest
from ema_cli.release.published import find_averages
from ema_cli.release.verify import verify
from ema_cli.runs.stored import open_stored
from ema_cli.storage.names import StorePath
from ema_cli.storage.store import claim, clients, listing
from ema_cli.watching import keeping
from ema_cli.watching.moments import alone
from ema_cli.watching.telling import Listener
from tests.conftest import Cli, write_hf_run, write_torch_run
from tests.storage.proxy import Proxy, Request
from tests.storage.stores import obstore, put
from tests.watching.test_watch import LAWS, ONCE, contents

_numbers = count()
STEPS = range(100, 600, 100)
SOME = (("torch", "store", "store"), ("hf", "store", "disk"), ("hf", "disk", "store"))  # each in `make test`


@pytest.fixture
def bucket() -> StorePath:
    """Return an address in an empty store in memory."""
    return StorePath(f"memory://watched-{next(_numbers)}/here")


def upload(folder: Path, address: StorePath) -> None:
    """Put all files of a folder below an address."""
    for name, content in contents(folder).items():
        put(address / name, content)


def present(address: StorePath) -> dict[str, bytes]:
    """Return the objects below an address, by the rest of their names."""
    listing.forget_listings()
    client = clients.client_of(address)
    keys = [meta["path"] for page in obstore.list(client, address.key) for meta in page]
    return {key.removeprefix(f"{address.key}/"): bytes(obstore.get(client, key).bytes()) for key in keys}


def unnamed(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return files of tensors without their headers, which hold the identity of a watch, and the names of all."""
    return {name: content[-64:] if name.endswith(".safetensors") else b"" for name, content in files.items()}


def test_a_checkpoint_is_kept_as_a_whole_there_too(bucket: StorePath, tmp_path: Path):
    """In the form of the input, from a store into a store: what `average` writes on a disk, but for the rounding."""
    write_hf_run(tmp_path / "run", STEPS)
    upload(tmp_path / "run", bucket / "run")
    for _ in range(2):
        watch(bucket / "run", bucket / "out", LAWS["half-life"], waiting=ONCE, like_input=True)
    watch(tmp_path / "run", tmp_path / "out", LAWS["half-life"], waiting=ONCE, like_input=True)
    there = present(bucket)
    for name, content in contents(tmp_path / "out").items():
        assert there[f"out/{name}"] == content
    kept = {name for name in there if name.startswith("out.watch/500ba/.newest/checkpoint-500/")}
    assert len(kept) == len(contents(tmp_path / "run" / "checkpoint-500"))


@pytest.mark.parametrize(
    ("kind", "run_in", "output_in"),
    [
        case if case in SOME else pytest.param(*case, marks=pytest.mark.full)
        for case in product(("torch", "hf"), ("store", "disk"), ("store", "disk"))
    ],
)
def test_it_is_as_on_a_disk(kind: str, run_in: str, output_in: str, bucket: StorePath, tmp_path: Path):
    """Whichever of both is in a store, one checkpoint after another: averages and what is kept have the same bytes."""
    write = write_torch_run if kind == "torch" else write_hf_run
    run = bucket / "run" if run_in == "store" else tmp_path / "run"
    target = bucket / "out" if output_in == "store" else tmp_path / "out"
    for step in STEPS:
        write(tmp_path / "local", [step])
        shutil.copytree(tmp_path / "local", tmp_path / "run", dirs_exist_ok=True)
        upload(tmp_path / "local", bucket / "run")
        shutil.rmtree(tmp_path / "local")
        watched = watch(run, target, LAWS["two"], waiting=ONCE, store_every="300ba")
        assert [str(entered.clock) for entered in watched.entered] == [f"{step}ba"]
        assert watched.gaps == ()
    (tmp_path / "alone").mkdir()
    watch(tmp_path / "run", tmp_path / "alone" / "out", LAWS["two"], waiting=ONCE, store_every="300ba")
    for name in ("out", "out.watch"):
        expected = contents(tmp_path / "alone" / name)
        found = present(bucket / name) if output_in == "store" else contents(tmp_path / name)
        assert unnamed(found) == unnamed(expected)
    assert [problem for one in find_averages([target]) for problem in verify(one).problems] == []
    kept = target.with_name("out.watch")
    assert open_stored([kept]).clocks == ["300ba", "500ba"]
    if output_in == "store":
        assert {name.partition("/")[0] for name in present(bucket)} == {"run", "out", "out.watch"}


class Killed(BaseException):
    """The end of a process, as its code sees it: nothing that it does afterwards reaches the store."""


class Death:
    """Lets a number of changes of the store through, and none after them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, changes: float) -> None:
        self.left = changes
        self.made = 0
        for name in ("put", "put_async", "delete", "copy"):
            monkeypatch.setattr(obstore, name, self._deadly(getattr(obstore, name)))

    def _deadly(self, change: Any) -> Any:
        def changed(*arguments: Any, **words: Any) -> Any:
            if self.left <= 0:
                raise Killed
            self.left -= 1
            self.made += 1
            return change(*arguments, **words)

        return changed


def clocks_of_releases(target: StorePath) -> tuple[str, ...]:
    """Return the clock of each average that verifies: what is not whole does not."""
    try:
        whole = [one for one in find_averages([target]) if not verify(one).problems]
    except EmaError:
        return ()  # nothing is there that calls itself a release
    return tuple(read_manifest(one.manifest)["inputs"][-1]["clock"] for one in whole)


@pytest.mark.parametrize("name", ["out", "out.safetensors"])
def test_killed_at_any_change_of_a_store_it_goes_on_with_the_same_bytes(
    name: str, bucket: StorePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool
):
    """When the claims of the dead are old; nothing is left over, and what verifies is whole.

    A store renames nothing: for a while there is no release in the place of an older one.
    """
    laws = LAWS["two"] if name == "out" else LAWS["half-life"]
    write_torch_run(tmp_path / "run", [100, 200])
    watch(tmp_path / "run", bucket / name, laws, waiting=ONCE, store_every="200ba")
    before = present(bucket)
    write_torch_run(tmp_path / "run", [300, 400])
    with monkeypatch.context() as patch:
        death = Death(patch, float("inf"))
        watch(tmp_path / "run", bucket / name, laws, waiting=ONCE, store_every="200ba")
    after = present(bucket)
    assert death.made >= 20
    monkeypatch.setattr(claim, "_LEASE", timedelta(0))
    published: set[tuple[str, ...]] = set()
    for changes in sorted({*range(0, death.made, 1 if full else 7), death.made - 1}):
        place = bucket / str(changes)
        for key, content in before.items():
            put(place / key, content)
        with monkeypatch.context() as patch:
            Death(patch, changes)
            with pytest.raises(Killed):
                watch(tmp_path / "run", place / name, laws, waiting=ONCE, store_every="200ba")
        published.add(clocks_of_releases(place / name))
        watch(tmp_path / "run", place / name, laws, waiting=ONCE, store_every="200ba")
        assert present(place) == after, changes
        for key in present(place):
            obstore.delete(clients.client_of(place), (place / key).key)
    older, newer = ("200ba",) * len(laws), ("400ba",) * len(laws)
    assert {older, newer} <= published
    assert all(len(set(clocks)) <= 1 for clocks in published)  # never one of two that is newer than the other


def test_one_that_is_deleted_from_a_store_while_it_is_read_leaves_no_trace(
    bucket: StorePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As on a disk: what is listed once more is not there any more, and that is told."""
    write_torch_run(tmp_path / "run", [100, 200, 300])
    upload(tmp_path / "run", bucket / "run")
    fold, calls, told = keeping.fold, [], []  # type: ignore[var-annotated]

    def disturbed(*arguments: Any, **words: Any) -> Any:
        calls.append(1)
        folded = fold(*arguments, **words)
        if len(calls) == 2:
            obstore.delete(clients.client_of(bucket), (bucket / "run/step-200.pt").key)
        return folded

    monkeypatch.setattr(keeping, "fold", disturbed)
    listener = Listener(told=told.append)
    watched = watch(bucket / "run", tmp_path / "out", LAWS["half-life"], waiting=ONCE, listener=listener)
    assert [str(entered.clock) for entered in watched.entered] == ["100ba", "300ba"]
    assert told[0] == "step-200.pt (200ba) was deleted while it was read"


def test_a_training_that_was_resumed_goes_back_to_a_moment_in_a_store(bucket: StorePath, tmp_path: Path):
    """What is given up gets another name there, too, and is no moment any more."""
    write_torch_run(tmp_path / "run", [100, 200, 300, 400])
    watch(tmp_path / "run", bucket / "out", LAWS["half-life"], waiting=ONCE, store_every="200ba")
    for step in (300, 400):
        (tmp_path / "run" / f"step-{step}.pt").unlink()
    write_torch_run(tmp_path / "run", [350])
    with pytest.raises(RunError, match="is at 350ba, but the averages are at 400ba"):
        watch(tmp_path / "run", bucket / "out", LAWS["half-life"], waiting=ONCE, store_every="200ba")
    again = watch(
        tmp_path / "run", bucket / "out", LAWS["half-life"], waiting=ONCE, store_every="200ba", restart_from="200ba"
    )
    assert [str(entered.clock) for entered in again.entered] == ["350ba"]
    folders = {name.partition("/")[0] for name in present(bucket / "out.watch")}
    assert folders == {"first.safetensors", "200ba", "350ba", "400ba.given-up"}
    write_torch_run(tmp_path / "branch", [100, 200, 350])
    watch(tmp_path / "branch", tmp_path / "alone", LAWS["half-life"], waiting=ONCE)
    assert present(bucket / "out")["model.safetensors"] == (tmp_path / "alone/model.safetensors").read_bytes()


def test_a_second_watch_of_one_output_in_a_store_is_refused(bucket: StorePath, tmp_path: Path):
    """By the claim of the first."""
    write_torch_run(tmp_path / "run", [100])
    with alone(bucket / "out.watch"), pytest.raises(OutputError, match="held by another run") as raised:
        watch(tmp_path / "run", bucket / "out", LAWS["half-life"], waiting=ONCE)
    assert raised.value.exit_code == 5
    assert present(bucket) == {}


def test_it_works_in_a_bucket_of_a_real_store(folder: StorePath, tmp_path: Path, cli: Cli):
    """SeaweedFS: step by step, with the program, and the averages verify."""
    for step in (100, 200, 300):
        write_hf_run(tmp_path / "run", [step])
        upload(tmp_path / "run", folder / "run")
        shutil.rmtree(tmp_path / "run")
        done = cli("watch", folder / "run", "--half-life", "150ba", "-o", folder / "out", "--once", "--settle", "0s")
        assert (done.code, done.out) == (0, f"{folder}/out\n"), done.err
        assert f"{step}ba: checkpoint-{step} entered" in done.err
    assert cli("verify", folder / "out", "--against", folder / "run").code == 0
    assert {name.partition("/")[0] for name in present(folder)} == {"run", "out", "out.watch"}
    assert {name.partition("/")[0] for name in present(folder / "out.watch")} == {"first.safetensors", "300ba"}


Disturbed = Callable[[Callable[[Request], str | None]], EmaError | None]


@pytest.fixture
def disturbed(proxy: Proxy, folder: StorePath, tmp_path: Path, impatient: None) -> Disturbed:
    """Return what watches two new checkpoints while faults happen, into SeaweedFS, and then without; see there."""
    laws, run, target = LAWS["two"], tmp_path / "run", folder / "out"
    write_torch_run(run, [100, 200])
    watch(run, target, laws, waiting=ONCE, store_every="200ba")
    before = present(folder)
    write_torch_run(run, [300, 400])
    watch(run, target, laws, waiting=ONCE, store_every="200ba")
    after = present(folder)

    def disturb(fault: Callable[[Request], str | None]) -> EmaError | None:
        """Return the error that the faults make, if they do. What is there then is whole, and the next watch ends it.

        It has the bytes of a watch that nothing disturbed.
        """
        for name in present(folder):
            obstore.delete(clients.client_of(folder), (folder / name).key)
        for name, content in before.items():
            put(folder / name, content)
        proxy.fault, raised = fault, None
        try:
            watch(run, target, laws, waiting=ONCE, store_every="200ba")
        except EmaError as error:
            raised = error
        assert raised is None or (raised.exit_code in (3, 5) and str(folder.parent) in str(raised.subject)), raised
        proxy.fault = lambda request: None
        assert clocks_of_releases(target) in ((), ("200ba",) * 2, ("300ba",) * 2, ("400ba",) * 2)
        watch(run, target, laws, waiting=ONCE, store_every="200ba")
        assert present(folder) == after
        return raised

    return disturb


@pytest.mark.slow
def test_a_fault_while_it_writes_is_made_good_or_an_error(disturbed: Disturbed, monkeypatch: pytest.MonkeyPatch):
    """Whatever it is, the next watch goes on with the same bytes."""
    monkeypatch.setattr(claim, "_LEASE", timedelta(0))
    for kind, at, fails in (("cut", 5, False), ("503", 3, False), ("416", 4, True), ("flip", 6, True)):
        writes = count()

        def fault(request: Request, kind: str = kind, at: int = at, writes: Iterator[int] = writes) -> str | None:
            return kind if request.method == "PUT" and next(writes) == at else None

        error = disturbed(fault)
        assert (error is not None) is fails, (kind, error)


@pytest.mark.full
@pytest.mark.parametrize("tenth", range(10))
def test_whatever_happens_while_it_writes_it_goes_on_with_the_same_bytes(
    disturbed: Disturbed, monkeypatch: pytest.MonkeyPatch, tenth: int
):
    """A hundred watches, ten at a time, with faults of all kinds at any request, one or several."""
    monkeypatch.setattr(claim, "_LEASE", timedelta(0))
    kinds, outcomes = ("cut", "503", "429", "500", "416", "flip"), []
    for seed in range(10 * tenth, 10 * tenth + 10):
        draw = random.Random(seed)
        share = draw.choice((0.01, 0.05, 0.2))

        def fault(request: Request, draw: random.Random = draw, share: float = share) -> str | None:
            return draw.choice(kinds) if draw.random() < share else None

        outcomes.append(disturbed(fault))
    assert None in outcomes
    assert any(outcomes)
