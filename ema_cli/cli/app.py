"""The command line: parse, call, render; the one boundary where errors become words and exit codes."""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path
from typing import Any

import typer

from ema_cli.cli.commands import average, compare, inspect, report, verify
from ema_cli.cli.commands.shared import error_facts, print_json
from ema_cli.cli.options import Version
from ema_cli.errors import EmaError, UsageError, option
from ema_cli.system import signals

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


app.command(epilog=average.EXAMPLES)(average.average)
app.command(epilog=inspect.EXAMPLES)(inspect.inspect)
app.command(epilog=compare.EXAMPLES)(compare.compare)
app.command(epilog=report.EXAMPLES)(report.report)
app.command(epilog=verify.EXAMPLES)(verify.verify)


def main() -> None:
    """Run the program and exit with its code."""
    signals.install()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name the terminal cannot show is no reason to fail
    if sys.stdout is None:  # closed by the caller
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - open until the end
    sys.exit(_run(sys.argv[1:]))


# The base class of typer's usage errors has no public name; its subclass BadParameter does.
_TyperError: type[Exception] = typer.BadParameter.__mro__[2]


def _run(arguments: list[str]) -> int:
    """Return the exit code of the command line, errors told."""
    try:
        code = app(arguments, prog_name="ema-cli", standalone_mode=False)
        sys.stdout.flush()
    except EmaError as problem:
        return _fail(problem, arguments)
    except _TyperError as problem:
        return _fail(_usage_error(problem), arguments)
    except BrokenPipeError:
        # The reader has seen enough (| head). Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except MemoryError:
        return _fail(EmaError("out of memory", hint=f"use fewer {option('threads')}"), arguments)
    except OSError as problem:
        subject = f"{problem.filename}: " if problem.filename else ""
        return _fail(EmaError(f"{subject}{problem.strerror or problem}"), arguments)
    except signals.Interrupted as problem:
        return 128 + problem.number
    return code if isinstance(code, int) else 0


def _usage_error(problem: Any) -> UsageError:
    """Return typer's error as ours, with the help that lists what there is."""
    return UsageError(
        problem.format_message(), hint=f"see {problem.ctx.command_path if problem.ctx else 'ema-cli'} {option('help')}"
    )


def _fail(problem: EmaError, arguments: list[str]) -> int:
    """Tell an error: as JSON on stdout where JSON was asked for, else in words on stderr."""
    if "--json" in arguments:
        command = next((each for each in arguments if each in _commands()), None)
        print_json(command, {"error": error_facts(problem)})
    else:
        from ema_cli.cli import terminal

        terminal.error(problem)
    return problem.exit_code


def _commands() -> set[str]:
    return {command.callback.__name__ for command in app.registered_commands if command.callback}
