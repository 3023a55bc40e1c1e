"""Errors name the options that the command at hand has; one that only another command has comes with its name."""

from __future__ import annotations

import re
import shlex
from itertools import product
from pathlib import Path

import pytest

from ema_cli.cli.command_line import COMMANDS
from ema_cli.cli.spelling import spelling_of
from ema_cli.cli.typer_commands import make_command
from ema_cli.errors import UsageError, all_options, at_terminal, in_python, option
from tests.conftest import Cli, write_hf_run
from tests.inprocess import InProcess

FLAGS = {
    command: {flag for each in make_command(command).params for flag in (*each.opts, *each.secondary_opts)} | {"--help"}
    for command in COMMANDS
}
NAMES = sorted(
    {flag.removeprefix("--").replace("-", "_") for flags in FLAGS.values() for flag in flags if flag.startswith("--")}
)
TYPED = re.compile(r"(?:ema-cli (\w+)(?: \S+)* )?(?<![\w-])(--?[a-z][a-z-]*)")


def unknown(text: str, command: str) -> list[str]:
    """Return the options in a text that neither the command has nor one that is named before them."""
    found = TYPED.finditer(re.sub("openssl .*", "", text))  # whose options are not ours
    return [match[2] for match in found if match[2] not in FLAGS[match[1] if match[1] in FLAGS else command]]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_option_is_one_of_the_command_or_comes_with_a_command_that_has_it(command: str):
    """In the fact and in the hint, with a value and without."""
    for name in NAMES:
        text = UsageError(f"not with {option(name)}", hint=f"say {option(name, 'x')}")
        spelling = spelling_of(command)
        assert unknown(text.message(spelling), command) == []
        assert unknown(text.advice(spelling) or "", command) == []


def test_of_several_ways_out_those_that_the_command_has_are_named():
    """And all, where it has none of them; a caller from Python reads them all."""
    error = UsageError(
        f"one of {all_options('half_life', 'profile', 'coefficients')} is needed",
        hint=f"leave it out: {option('exclude', 'a, or b')}; or let it pass with {option('allow_non_finite', True)}",
    )
    watch, average, report = map(spelling_of, ("watch", "average", "report"))
    assert error.message(watch) == "one of --half-life and --profile is needed"
    assert error.message(average) == "one of --half-life, --profile and --coefficients is needed"
    assert error.advice(watch) == "leave it out: --exclude 'a, or b'"
    whole = "leave it out: --exclude 'a, or b'; or let it pass with --allow-non-finite"
    assert (error.advice(average), error.advice(at_terminal)) == (whole, whole)
    assert error.advice(report) == whole.replace("--", "ema-cli average --")
    assert error.advice(in_python) == "leave it out: exclude='a, or b'; or let it pass with allow_non_finite=True"


def test_what_is_no_option_of_the_command_is_a_field(cli: Cli, tmp_path: Path):
    """As of a manifest that `verify` reads: nobody typed it."""
    error = UsageError("'x' is unknown", option="profile")
    assert error.message(spelling_of("verify")) == "profile: 'x' is unknown"
    assert error.message(spelling_of("average")) == "--profile: 'x' is unknown"


VALUES = {
    "profile": ("linear", "x"), "half_life": ("50", "5ba", "5%ba"), "smoothing": ("2",), "sigma_rel": ("9",),
    "window": ("5ba", "x"), "start": ("x", "9999ba"), "stop": ("x",), "last": ("0",), "update_interval": ("often",),
    "lag": ("-1",), "base": ("nowhere",), "coefficients": ("nowhere",), "extrapolate": ("2",),
    "extrapolate_from": ("x",),
    "source": ("x", "stored"), "series_every": ("x", "1ba"), "weights": ("both", "ema"), "key": ("model",),
    "component": ("unet",), "clock_key": ("step",), "name_clock": ("x",), "spacing": ("5ba", "x"),
    "epoch_length": ("1ep",),
    "exclude": ("*", "zz"), "copy": ("zz",), "merge_into": ("nowhere", "run/checkpoint-1"), "dtype": ("int8",),
    "max_shard_size": ("x", "1GB"), "drop": ("x", "optimizer"), "exact_lora": ("0", "2"),
    "output": ("x.bin", "x.pt", "x.ckpt"),
    "threads": ("0",), "max_memory": ("1MB", "x"), "min_count": ("9",), "max_share": ("0.1",), "part": ("9/2",),
    "until": ("x",), "every": ("x",), "publish_every": ("0ba",), "restart_from": ("5ba",),
    "against": ("nowhere", "run"),
}  # fmt: skip
BEFORE = {
    "average": "average run -o out", "inspect": "inspect run", "tune": "tune run --eval true -o best",
    "watch": "watch run --once --settle 0s -o kept", "compare": "compare run/checkpoint-1 run/checkpoint-2",
    "report": "report made -f -o page.html", "verify": "verify made",
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_no_error_names_an_option_that_its_command_lacks(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Each option with values that make no sense, or none there, alone and with a half-life."""
    monkeypatch.chdir(tmp_path)
    run = InProcess(tmp_path, capsys)
    write_hf_run(tmp_path / "run", [1, 2, 3])
    assert run("average", "run", "--half-life", "1ba", "-o", "made", "-q")[0] == 0
    law = ["--half-life", "1ba"] if "--half-life" in FLAGS[command] else []
    refused = 0
    for each, more in product(make_command(command).params, ([], law)):
        if each.opts[0][0] != "-" or each.name in ("anonymous", "shell") or each.opts[0] == "--on":
            continue
        values = [[]] if getattr(each, "is_flag", False) else [[value] for value in VALUES.get(each.name, ("x",))]
        for value in values:
            line = [*shlex.split(BEFORE[command]), *more, each.opts[0], *value]
            code, _ = run(*line)
            refused += code not in (0, 1)
            assert code != 1, (line, run.err)
            told = "\n".join(row for row in run.err.splitlines() if row.startswith(("error:", "hint:")))
            assert unknown(told, command) == [], (line, told)
    assert refused > len(FLAGS[command]) / 3
