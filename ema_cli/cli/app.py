"""The command line: understand, run, and turn errors into words and exit codes; the one boundary where that happens."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import typer

from ema_cli.cli.output import fail
from ema_cli.cli.stderr import last_words
from ema_cli.cli.typer_commands import Call, Group, Invocation, Version
from ema_cli.errors import EmaError, UsageError, option
from ema_cli.storage.names import name_anonymously
from ema_cli.system import signals
from ema_cli.system.threads import WAITS_FOR_STORE

_EPILOG = """\
Examples: look; average; check what was written (each command's --help has more)

  ema-cli inspect ckpts/ --half-life 50ba
  ema-cli average ckpts/ --half-life 50ba -o release
  ema-cli verify release

TIME is a number and a unit: 50ba (batches, each an optimizer step), 2ep (epochs), 1e6sp (samples), 1e9tok (tokens).

Files: an average is NAME.safetensors, NAME.pt or a folder. With it come a manifest, which says what went in with \
which weight and what came out, and sums for sha256sum -c: NAME.safetensors.manifest.json and \
NAME.safetensors.sha256 beside a file, ema-manifest.json and SHA256SUMS in a folder.

Exit codes: 0 done; 1 unexpected; 2 usage; 3 a bad or incomplete checkpoint; 4 checkpoints that do not fit together, \
or are averaged already; 5 an output that exists or cannot be written; 6 a value that is not finite, an average that \
does not verify, a demand that is not met; 130 Ctrl-C, 143 SIGTERM, 129 a terminal and 141 a pipe that went away. Any \
other is a failure, too.

The result goes to stdout, all else to stderr; --json makes one object of the result, or of the error. NO_COLOR is \
honoured, and nothing asks a question."""

app = typer.Typer(
    name="ema-cli",
    cls=Group,
    help="Average the checkpoints of a training run into release weights, with Composer's half-life law.",
    epilog=_EPILOG,
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def ema_cli(context: typer.Context, version: Version = False) -> None:
    """Average the checkpoints of a training run into release weights, with Composer's half-life law."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


def main() -> None:
    """Run the program and exit with its code."""
    signals.install()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name the terminal cannot show is no reason to fail
    if sys.stdout is None:  # closed by the caller
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - open until the end
    code = run(sys.argv[1:])
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    if code and any(not thread.daemon or thread.name == WAITS_FOR_STORE for thread in others):
        # A thread may wait for a store for minutes, and the end of the interpreter for the thread.
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run a command line, print its result or what is wrong, and return the exit code."""
    invocation = Invocation()
    try:
        code = _run(arguments, invocation)
        sys.stdout.flush()
    except EmaError as problem:
        return _fail(problem, invocation)
    except typer.TyperException as problem:
        return _fail(_misunderstood(problem, invocation), invocation)
    except BrokenPipeError:
        # The reader has seen enough (| head). Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except MemoryError:
        return _fail(EmaError("out of memory", hint=f"use fewer {option('threads')}"), invocation)
    except OSError as problem:
        return _fail(EmaError(problem.strerror or str(problem), subject=problem.filename or None), invocation)
    except signals.Interrupted as problem:
        last_words(problem.number)
        return 128 + problem.number
    return code


def _run(arguments: list[str], invocation: Invocation) -> int:
    """Run a command line, and return the exit code."""
    try:
        return _call(arguments, invocation)
    finally:
        name_anonymously(False)  # as it was for whoever called this from Python


def _call(arguments: list[str], invocation: Invocation) -> int:
    call = app(arguments, prog_name="ema-cli", standalone_mode=False, obj=invocation)
    if not isinstance(call, Call):
        return call if isinstance(call, int) else 0  # help, or the version
    from ema_cli.storage.store.header_cache import keep_headers  # which help does not need

    keep_headers(wanted=not call.options.no_cache)
    try:
        code = import_module(f"ema_cli.cli.commands.{call.command}").run(call.options)
    finally:
        keep_headers(wanted=False)
    return code if isinstance(code, int) else 0


def _misunderstood(problem: typer.TyperException, invocation: Invocation) -> UsageError:
    """Return the error for a command line that typer does not understand."""
    typed, context = getattr(problem, "option_name", None), getattr(problem, "ctx", None)
    from ema_cli.storage.names import without_secrets  # which help does not need

    if typed is not None and context is not None:
        from ema_cli.cli.other_words import known_elsewhere

        options = {spelling for parameter in context.command.params for spelling in parameter.opts}
        known = known_elsewhere(typed, options, invocation.hint)
        if known is not None:
            return known
        near = getattr(problem, "possibilities", None)  # of the message they are a part in parentheses
        if near:
            return UsageError(f"No such option: {typed}", hint=f"did you mean {' or '.join(near)}? {invocation.hint}")
    return UsageError(without_secrets(problem.format_message()), hint=invocation.hint)


def _fail(problem: EmaError, invocation: Invocation) -> int:
    fail(problem, command=invocation.command, as_json=invocation.as_json)
    return problem.exit_code
