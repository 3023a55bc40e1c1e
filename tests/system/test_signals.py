"""Signals that end the program, and the steps that they must not split."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ema_cli.storage.staging.local import Staging
from ema_cli.system import signals
from ema_cli.system.signals import Interrupted, deferred_signals


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Install the program's handlers, and put back what was there."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with signals.unwinding():
        yield
    for number, handler in before.items():
        signal.signal(number, handler)


def kill_self(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_unwinds_with_its_number(number: int):
    """Each ending signal surfaces as `Interrupted`, and a second one is ignored."""
    with pytest.raises(Interrupted) as raised:
        kill_self(number)
    assert raised.value.number == number
    kill_self(number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_while_something_is_finished_a_second_signal_ends_at_once(number: int):
    """The first one unwinds, so that the rest can be published; whoever sends another does not want to wait."""
    code = (
        "import os, signal, time\n"
        "from ema_cli.system import signals\n"
        "signals.install()\n"
        "with signals.finishing():\n"
        "    try:\n"
        f"        os.kill(os.getpid(), {int(number)})\n"
        "    except signals.Interrupted:\n"
        "        print('finishing', flush=True)\n"
        f"        os.kill(os.getpid(), {int(number)})\n"
        "        time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 128 + number
    assert done.stdout == "finishing\n"
    assert "Traceback" not in done.stderr


def test_a_signal_waits_for_the_end_of_the_block():
    """The block is done whole, with other threads around that could take the signal; then it surfaces."""
    waiting = threading.Event()
    other = threading.Thread(target=waiting.wait)
    other.start()
    np.ones((200, 200)) @ np.ones((200, 200))
    done = []

    def work() -> None:
        with deferred_signals():
            kill_self(signal.SIGTERM)
            done.append("first")
            done.append("second")

    with pytest.raises(Interrupted):
        work()
    waiting.set()
    other.join()
    assert done == ["first", "second"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_around_the_work_a_signal_ends_the_program_without_a_traceback(number: int, moment: str):
    """Ctrl-C while modules are imported, or before anything is written: a word, unless the terminal went away."""
    work = "with signals.unwinding():\n    pass\n" if moment == "after" else ""
    script = f"from ema_cli.system import signals\nsignals.install()\n{work}import os\nos.kill(os.getpid(), {number})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    words = "" if number == signal.SIGHUP else "interrupted, nothing written\n"
    assert (done.returncode, done.stderr) == (128 + number, words)


def test_a_second_signal_is_no_traceback():
    """Python prints one for a signal that comes while its handler is being replaced by SIG_IGN."""
    with pytest.raises(Interrupted):
        kill_self(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_IGN, signal.SIG_DFL)


def test_a_signal_just_before_the_clean_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A signal between the end of the work and the holding back of signals used to leave the hidden folder."""

    def interrupted() -> None:
        kill_self(signal.SIGTERM)

    def publish() -> None:
        with Staging(tmp_path / "x.safetensors"):
            monkeypatch.setattr("ema_cli.storage.staging.local.deferred_signals", interrupted)

    with pytest.raises(Interrupted) as raised:
        publish()
    assert list(tmp_path.iterdir()) != []
    raised.value.__traceback__ = None
    del raised  # nothing holds the area any more, as at the interpreter's exit
    assert list(tmp_path.iterdir()) == []


def test_an_ignored_signal_stays_ignored():
    """Under nohup a hang-up neither ends the program nor is held back to end it later."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with deferred_signals():
        kill_self(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_in_another_thread_nothing_is_deferred():
    """Only the main thread has handlers; elsewhere the block just runs."""
    ran = []

    def work() -> None:
        with deferred_signals():
            ran.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ran == [True]


@pytest.mark.parametrize(
    "moment", ["ema_cli.storage.staging.local.lock_folder", "ema_cli.storage.staging.local.remove_abandoned"]
)
def test_a_signal_while_staging_begins_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str):
    """A signal that is held back while the hidden folder is made surfaces with the folder gone."""
    module, _, name = moment.rpartition(".")
    real = getattr(__import__(module, fromlist=[name]), name)

    def interrupted(*arguments: object, **options: object) -> object:
        kill_self(signal.SIGTERM)
        return real(*arguments, **options)

    monkeypatch.setattr(moment, interrupted)
    with pytest.raises(Interrupted):
        Staging(tmp_path / "x.safetensors").__enter__()
    assert list(tmp_path.iterdir()) == []


def test_a_signal_while_publishing_leaves_the_new_state_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A signal between the rename and the sync: the output is there, whole, and nothing else."""
    from ema_cli.storage.staging import renames

    real = renames.rename_with

    def interrupted(*arguments: object) -> bool:
        done = real(*arguments)  # type: ignore[arg-type]
        kill_self(signal.SIGTERM)
        return done

    monkeypatch.setattr(renames, "rename_with", interrupted)

    def publish() -> None:
        with Staging(tmp_path / "x.safetensors") as area:
            (area.folder / "x.safetensors").write_bytes(b"new")
            area.publish_file("x.safetensors", force=False)

    with pytest.raises(Interrupted):
        publish()
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
    assert (tmp_path / "x.safetensors").read_bytes() == b"new"
