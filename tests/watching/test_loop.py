"""The loop of a watch: what waits for what, what is told, what is read. The training goes on while the watch waits."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from ema_cli import Recipe, watch
from ema_cli.errors import OutputError, RunError
from ema_cli.manifest.manifest import read_manifest
from ema_cli.manifest.sums import manifest_path
from ema_cli.system.processors import default_threads
from ema_cli.watching import keeping, looking, loop
from ema_cli.watching.moments import alone
from ema_cli.watching.telling import Listener, Watched
from ema_cli.watching.watch import WaitingKeywords
from tests.conftest import make_tensors, write_hf_run, write_torch_run
from tests.formats.dcp_folders import save_folder

RECIPE = Recipe(half_life="200ba")
QUICK: WaitingKeywords = {"every": 0.01, "settle": 0.0, "patience": 60.0}
Step = Callable[[], object]


class Training:
    """A training that does its next step whenever the watch waits, and what the watch said."""

    def __init__(self, folder: Path, *steps: Step) -> None:
        self.folder = folder
        self.told: list[str] = []
        self.entered: list[str] = []
        self.waits = 0
        self._steps: Iterator[Step] = iter(steps)

    def watch(self, **waiting: object) -> Watched:
        """Watch it until the clock that is given, with all that happens written down."""
        listener = Listener(
            entered=lambda entered: self.entered.append(f"{entered.clock}{' not' if entered.skipped else ''}"),
            told=self.told.append,
            waiting=lambda _: self._wait(),
        )
        words = {**QUICK, **waiting}
        return watch(self.folder, self.folder.with_name("out"), RECIPE, waiting=words, listener=listener)  # type: ignore[arg-type]

    def _wait(self) -> None:
        self.waits += 1
        assert self.waits < 2000, "nothing ends it"
        step = next(self._steps, None)
        if step is not None:
            step()


def saves(folder: Path, step: int) -> Step:
    """Save a checkpoint."""
    return lambda: torch.save({"model": make_tensors(step), "step": step}, folder / f"step-{step}.pt")


def removes(path: Path) -> Step:
    """Remove a file or a folder."""
    return lambda: shutil.rmtree(path) if path.is_dir() else path.unlink()


def begins(folder: Path, step: int) -> Step:
    """Begin a checkpoint as an older transformers does: in a folder with another name."""
    return lambda: (folder / f"tmp-checkpoint-{step}").mkdir()


def finishes(folder: Path, step: int) -> Step:
    """Complete such a checkpoint."""

    def finish() -> None:
        write_hf_run(folder.with_name(f"made-{step}"), [step])
        (folder.with_name(f"made-{step}") / f"checkpoint-{step}").rename(folder / f"checkpoint-{step}")
        (folder / f"tmp-checkpoint-{step}").rmdir()

    return finish


def test_it_ends_at_until(tmp_path: Path):
    """What is later does not enter, and what is at it does; the trainer's files may come late."""
    run = tmp_path / "run"
    run.mkdir()
    training = Training(run, *(saves(run, step) for step in (100, 200, 300, 400)))
    assert str(training.watch(until="300ba").clock) == "300ba"
    assert training.entered == ["100ba", "200ba", "300ba"]
    training = Training(run, saves(run, 400), saves(run, 600))
    assert str(training.watch(until="500ba").clock) == "400ba"
    assert training.entered == ["400ba"]


def test_it_ends_where_the_trainer_says_that_it_is_the_end(tmp_path: Path):
    """By transformers' `max_steps`; also where a watch begins only then."""
    run = tmp_path / "run"
    run.mkdir()
    training = Training(run, lambda: write_hf_run(run, [100, 200], most_steps=200))
    assert str(training.watch().clock) == "200ba"
    assert Training(run).watch().entered == ()


def test_a_file_that_grows_is_not_folded(tmp_path: Path):
    """It must stay as it is for as long as `settle` says, and is looked at again then."""
    run = tmp_path / "run"
    run.mkdir()
    saves(tmp_path, 100)()
    whole = (tmp_path / "step-100.pt").read_bytes()

    def grow(end: int) -> Step:
        return lambda: (run / "step-100.pt").write_bytes(whole[:end])

    growing = [grow(end) for end in range(100, len(whole), 40)] + [grow(len(whole))]
    training = Training(run, *growing, saves(run, 200))
    began = len(growing)
    training.watch(settle=0.05, until="200ba")
    assert training.entered == ["100ba", "200ba"]
    assert training.waits > began


def test_one_that_is_not_complete_holds_back_those_after_it(tmp_path: Path):
    """They enter in the order of their clocks, when it is complete."""
    run = tmp_path / "run"
    write_hf_run(run, [100])
    training = Training(
        run,
        begins(run, 200),
        lambda: write_hf_run(run, [300]),
        *[lambda: None] * 5,
        finishes(run, 200),
    )
    training.watch(until="300ba")
    assert training.entered == ["100ba", "200ba", "300ba"]
    assert training.told == []


def test_a_distributed_checkpoint_that_is_saved_asynchronously_holds_back_those_after_it(tmp_path: Path):
    """Its `.metadata` comes last, when those after it may be there already."""
    run = tmp_path / "run"
    for step in (100, 200, 300):
        save_folder(run / f"step-{step}", {"model": make_tensors(step), "step": step})
    last = run / "step-200" / ".metadata"
    last.rename(tmp_path / "late")
    training = Training(run, *[lambda: None] * 5, lambda: (tmp_path / "late").rename(last))
    training.watch(until="300ba")
    assert training.entered == ["100ba", "200ba", "300ba"]
    assert training.told == []


def test_one_that_is_given_up_holds_back_no_longer_and_is_told(tmp_path: Path):
    """When it is gone; what comes after it enters."""
    run = tmp_path / "run"
    write_hf_run(run, [100])
    training = Training(
        run,
        begins(run, 200),
        lambda: write_hf_run(run, [300]),
        *[lambda: None] * 5,
        removes(run / "tmp-checkpoint-200"),
    )
    watched = training.watch(until="300ba")
    assert training.entered == ["100ba", "300ba"]
    assert training.told == ["tmp-checkpoint-200 (200ba) was deleted before it was read"]
    assert watched.gaps == tuple(training.told)


def test_patience_ends(tmp_path: Path):
    """One that never becomes complete is left out, and told; should it come after all, that is told, too."""
    run = tmp_path / "run"
    write_hf_run(run, [100])
    training = Training(run, begins(run, 200), lambda: write_hf_run(run, [300]))
    training.watch(until="300ba", patience=0.1)
    assert training.entered == ["100ba", "300ba"]
    assert training.told == ["tmp-checkpoint-200 (200ba) was not complete after 0.1 s, and is left out"]
    late = Training(run, finishes(run, 200), lambda: write_hf_run(run, [400]))
    late.watch(until="400ba")
    assert late.entered == ["400ba"]
    assert late.told == ["checkpoint-200 came too late: the averages are at 300ba"]


def test_what_is_deleted_while_others_wait_is_told(tmp_path: Path):
    """Seen, held back, and gone before its turn."""
    run = tmp_path / "run"
    write_hf_run(run, [100])
    training = Training(
        run,
        begins(run, 200),
        lambda: write_hf_run(run, [300]),
        *[lambda: None] * 3,
        removes(run / "checkpoint-300"),
        *[lambda: None] * 3,
        finishes(run, 200),
        lambda: write_hf_run(run, [400]),
    )
    training.watch(until="400ba")
    assert training.entered == ["100ba", "200ba", "400ba"]
    assert training.told == ["checkpoint-300 (300ba) was deleted before it was read"]


@pytest.mark.parametrize("how", ["deleted", "rewritten"])
def test_one_that_is_deleted_or_rewritten_while_it_is_read_leaves_no_trace(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Neither in the averages nor in what is kept; what is written anew enters then."""
    run = tmp_path / "run"
    write_torch_run(run, [100, 200])
    fold, calls = keeping.fold, []

    def disturbed(*arguments: object, **words: object) -> object:
        folded = fold(*arguments, **words)  # type: ignore[arg-type]
        calls.append(1)
        if len(calls) == 2:
            saved = (run / "step-200.pt").read_bytes()
            (run / "step-200.pt").unlink()
            if how == "rewritten":
                (run / "step-200.pt").write_bytes(saved)
                saves(run, 200)()
        return folded

    monkeypatch.setattr(keeping, "fold", disturbed)
    training = Training(run, lambda: None, saves(run, 300))
    training.watch(until="300ba")
    if how == "deleted":
        assert training.entered == ["100ba", "300ba"]
        assert training.told[0] == "step-200.pt (200ba) was deleted while it was read"
    else:
        assert training.entered == ["100ba", "200ba", "300ba"]
        assert training.told == []
    assert not list((tmp_path / "out.watch").glob(".*"))


def test_headers_are_read_only_when_something_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In between, names, sizes and times are all that is looked at."""
    run = tmp_path / "run"
    write_torch_run(run, [100])
    opened, read_run = [], looking.read_run
    monkeypatch.setattr(looking, "read_run", lambda *words: opened.append(1) or read_run(*words))
    training = Training(run, *[lambda: None] * 50, saves(run, 200), *[lambda: None] * 50, saves(run, 300))
    training.watch(until="300ba")
    assert training.waits >= 100
    assert len(opened) <= 5


def test_it_holds_no_file_open_that_may_be_deleted(tmp_path: Path):
    """The room of a deleted file is free only when nobody has it open."""
    run = tmp_path / "run"
    write_torch_run(run, [100])
    held: list[str] = []

    def look() -> None:
        links = Path("/proc/self/fd").iterdir() if Path("/proc/self/fd").exists() else ()
        for link in links:
            try:
                target = str(link.readlink())
            except OSError:
                continue
            held.extend([target] if target.startswith(str(tmp_path / "run")) else [])

    Training(run, look, saves(run, 200), look, saves(run, 300)).watch(until="300ba")
    assert held == []


def test_the_room_of_older_moments_is_free_while_it_catches_up(tmp_path: Path):
    """Of many checkpoints at once, no moment but the newest takes room: none that is removed is held open."""
    write_torch_run(tmp_path / "run", range(100, 900, 100))
    held: list[str] = []

    def look(_: object) -> None:
        for link in Path("/proc/self/fd").iterdir() if Path("/proc/self/fd").exists() else ():
            with suppress(OSError):
                target = str(link.readlink())
                held.extend([target] if "out.watch" in target and "(deleted)" in target else [])

    watch(tmp_path / "run", tmp_path / "out", RECIPE, waiting={**QUICK, "once": True}, listener=Listener(entered=look))
    assert held == []


def test_two_watches_of_one_output_are_refused(tmp_path: Path):
    """The second has nothing to do with the first one's files."""
    write_torch_run(tmp_path / "run", [100])
    with alone(tmp_path / "out.watch"), pytest.raises(OutputError, match="another watch") as raised:
        Training(tmp_path / "run").watch(once=True)
    assert raised.value.exit_code == 5
    assert not (tmp_path / "out").exists()


def test_it_publishes_as_often_as_is_asked(tmp_path: Path):
    """And at the end, whatever is folded."""
    run = tmp_path / "run"
    run.mkdir()
    published: list[str] = []
    steps = iter([saves(run, step) for step in range(100, 1100, 100)])

    def wait(_: object) -> None:
        next(steps, lambda: None)()

    listener = Listener(published=lambda clock, seconds, job: published.append(str(clock)), waiting=wait)
    words: WaitingKeywords = {**QUICK, "until": "1000ba"}
    watch(run, tmp_path / "out", RECIPE, waiting=words, publish_every="300ba", listener=listener)
    assert published == ["100ba", "300ba", "600ba", "900ba", "1000ba"]


def test_an_interrupt_publishes_what_is_folded(tmp_path: Path):
    """Also where it would not have been published for long."""
    run = tmp_path / "run"
    write_torch_run(run, [100, 200])

    def interrupt() -> None:
        raise KeyboardInterrupt

    steps = iter([lambda: None, saves(run, 300), lambda: None, interrupt])
    published: list[str] = []
    listener = Listener(
        published=lambda clock, seconds, job: published.append(str(clock)), waiting=lambda _: next(steps)()
    )
    with pytest.raises(KeyboardInterrupt):
        watch(run, tmp_path / "out", RECIPE, waiting=QUICK, publish_every="10000ba", listener=listener)
    assert published == ["200ba", "300ba"]


def test_epochs_that_are_counted_from_0_stay_so_when_the_first_is_gone(tmp_path: Path):
    """Only the first checkpoint shows it, and what it showed is kept."""
    run = tmp_path / "run"
    run.mkdir()
    clocks = []
    for epoch in range(4):
        torch.save({"model": make_tensors(epoch), "epoch": epoch}, run / "model.pt")
        shutil.move(run / "model.pt", run / f"epoch-{epoch}.pt")
        watched = watch(run, tmp_path / "out", Recipe(half_life="2ep"), waiting={"once": True, "settle": 0.0})
        clocks.append(str(watched.clock))
        (run / f"epoch-{epoch}.pt").unlink()
    assert clocks == ["1ep", "2ep", "3ep", "4ep"]


def test_a_folder_without_checkpoints_is_waited_for(tmp_path: Path):
    """But not with `once`, which says that nothing is there."""
    (tmp_path / "run").mkdir()
    with pytest.raises(Exception, match="no checkpoint"):
        Training(tmp_path / "run").watch(once=True)
    training = Training(tmp_path / "run", *[lambda: None] * 5, saves(tmp_path / "run", 100))
    training.watch(until="100ba")
    assert training.entered == ["100ba"]


def test_threads_do_not_show_in_the_averages(tmp_path: Path):
    """As in `average`."""
    write_torch_run(tmp_path / "run", range(100, 600, 100))
    for threads in (1, default_threads() + 1):
        watch(tmp_path / "run", tmp_path / str(threads), RECIPE, waiting={"once": True, "settle": 0.0}, threads=threads)
    names = [str(threads) for threads in (1, default_threads() + 1)]
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in names)
    assert one == other
    assert loop.Listener().waiting(None) is None


@pytest.mark.parametrize("name", ["until", "publish_every", "store_every"])
def test_a_clock_that_no_checkpoint_has_is_an_error_at_the_first(name: str, tmp_path: Path):
    """An end that never comes is not waited for, and nothing is kept."""
    write_torch_run(tmp_path / "run", [100, 200])
    words: dict[str, object] = {"waiting": {**QUICK, "until": "5tok"}} if name == "until" else {name: "5tok"}
    with pytest.raises(RunError, match=r"records no clock in tokens, which .* needs; known: batches") as raised:
        watch(tmp_path / "run", tmp_path / "out", RECIPE, **{"waiting": {**QUICK, "once": True}, **words})  # type: ignore[arg-type]
    assert raised.value.hint == f"give {name}= in batches"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_once_says_what_holds_back_the_rest_and_tells_once_what_came_too_late(tmp_path: Path):
    """A file that is cut short: those after it wait, as long as patience says; when it is whole nobody needs it."""
    run = tmp_path / "run"
    run.mkdir()
    for step in (100, 200, 300):
        saves(run, step)()
    whole = (run / "step-200.pt").read_bytes()
    (run / "step-200.pt").write_bytes(whole[: len(whole) // 2])
    training = Training(run)
    training.watch(once=True, patience=600.0)
    assert training.entered == ["100ba"]
    assert training.told == ["step-200.pt (200ba) is not complete, and holds back what comes after it, for 600 s"]
    training.watch(once=True, patience=0.0)
    assert training.entered == ["100ba", "300ba"]
    (run / "step-200.pt").write_bytes(whole)
    told = []
    for step in (400, 500, 600):
        saves(run, step)()
        training.told.clear()
        training.watch(once=True)
        told.append([*training.told])
    assert training.entered == ["100ba", "300ba", "400ba", "500ba", "600ba"]
    assert told == [["step-200.pt came too late: the averages are at 300ba"], [], []]


def test_what_is_complete_after_all_is_no_gap(tmp_path: Path):
    """A file that is written for longer than patience says, with nothing after it: it enters, and is no gap."""
    run = tmp_path / "run"
    run.mkdir()
    saves(run, 100)()
    training = Training(run, *[saves(run, 200)] * 20)
    watched = training.watch(until="200ba", settle=0.1, patience=0.05)
    assert training.entered == ["100ba", "200ba"]
    assert "step-200.pt (200ba) was not complete after 0.05 s, and is left out" in training.told
    assert watched.gaps == ()
    assert read_manifest(manifest_path(tmp_path / "out", is_folder=True))["watch"] == {"gaps": []}


@pytest.mark.parametrize("once", [True, False])
def test_a_log_that_grows_beside_does_not_hide_that_something_is_wrong(once: bool, tmp_path: Path):
    """The folder is never quiet then; what is wrong for longer than patience says is an error all the same."""
    log = tmp_path / "run" / "log.txt"
    for number, folder in enumerate((log.parent, log.parent / "a", log.parent / "b")):
        folder.mkdir(parents=True)
        saves(folder, 100 + 50 * number)()
    lines = (lambda number=number: log.write_text("line\n" * number) for number in range(3000))
    training = Training(log.parent, *lines)
    with pytest.raises(RunError, match="checkpoints of 3 runs"):
        training.watch(once=once, settle=0.1, patience=0.3)
    assert training.waits <= 40  # of 10 ms
