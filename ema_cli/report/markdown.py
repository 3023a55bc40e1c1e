"""Write a summary of averages as Markdown for the page of a CI job: weights drawn in text, checksums, warnings.

It is always shorter than 64 kB. Names come from untrusted files: they stand in code only, where nothing is markup.
No numpy.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ema_cli.errors import EmaError, OutputError, at_terminal, printable
from ema_cli.formats import weights_in
from ema_cli.formats.mark import FOLDER_NAME, described_by
from ema_cli.law.recipe import Recipe
from ema_cli.law.wording import recipe_details
from ema_cli.manifest.manifest import recorded_age, shown_clock
from ema_cli.manifest.sums import files_beside, sidecars
from ema_cli.manifest.types import InputRow, Manifest
from ema_cli.storage.info import Kind
from ema_cli.storage.location import location, missing_folder
from ema_cli.text import plural, size
from ema_cli.writing.target import Target

_MOST_BYTES = 60_000  # of the 64 KB that a job may append; the rest is for the note on omitted averages
_MOST_ROWS = 40
_MOST_WARNINGS = 20
_MOST_CHARS = 80  # of a name
_MOST_CHARS_OF_A_WARNING = 200
_BAR_WIDTH = 24
_LOOK_BYTES = 1 << 16
_HINT = "as --summary summary.md"

Averages = Sequence[tuple[Path, Manifest]]


class _NotAppended(OutputError):
    """The summary file cannot be appended to, so the failure cannot be reported there either."""


def check_summary(path: Path, target: Target | None = None, inputs: Iterable[Path] = ()) -> None:
    """Check that a summary can be appended to a file. The file need not exist, but its folder must.

    Raises:
        OutputError: if it cannot, or if the file holds weights or what is no text, or belongs to an average, to the
            output or to an input.
    """
    parent = path.absolute().parent
    try:
        if not os.path.lexists(path):
            if not parent.is_dir():
                fact, hint = missing_folder(parent)
                raise _NotAppended(fact, option="summary", subject=path, hint=hint or _HINT)
            if not os.access(parent, os.W_OK | os.X_OK):
                raise _NotAppended(f"nothing can be written to {parent}", option="summary", subject=path, hint=_HINT)
            if location(path).info().kind is Kind.IMPOSSIBLE:
                raise _NotAppended("no file can have that name", option="summary", subject=path, hint=_HINT)
        elif path.is_dir():
            raise _NotAppended("is a folder", option="summary", subject=path, hint=_HINT)
        elif not (path.is_file() or path.is_char_device()):
            raise _NotAppended("is neither a regular file nor a device", option="summary", subject=path, hint=_HINT)
        elif (weights := weights_in(path)) is not None:
            raise _NotAppended(weights, option="summary", subject=path, hint=_HINT)
        elif path.is_file() and not _is_text(path):
            raise _NotAppended("is no text", option="summary", subject=path, hint=_HINT)
        else:
            os.close(os.open(path, os.O_WRONLY | os.O_APPEND))
        real = path.resolve()
    except (OSError, RuntimeError) as error:
        raise _NotAppended(
            f"cannot be appended to: {_reason(error)}", option="summary", subject=path, hint=_HINT
        ) from error
    average = _average_of(path) or _average_of(real)
    if average is not None:
        raise _NotAppended(f"is of an average, {average}", option="summary", subject=path, hint=_HINT)
    if target is not None:
        own = location(target.path).resolve()
        beside = {location(sidecar).resolve() for sidecar in files_beside(target.path)}
        if real == own or own in real.parents or real in beside:
            raise _NotAppended(f"is of the output, {target.path}", option="summary", subject=path, hint=_HINT)
    for source in (location(path).resolve() for path in inputs):
        if real == source or source in real.parents:
            raise _NotAppended(f"is of an input, {source.name}", option="summary", subject=path, hint=_HINT)


def _is_text(path: Path) -> bool:
    """Return whether a file begins as text in UTF-8 does, as far as a look can tell; an empty one does."""
    try:
        with path.open("rb") as file:
            begin = file.read(_LOOK_BYTES)
        return "\0" not in codecs.getincrementaldecoder("utf-8")().decode(begin)  # the last character may be cut
    except UnicodeDecodeError:
        return False
    except OSError:  # who may only write there can append
        return True


def _average_of(path: Path) -> Path | None:
    """Return the average whose manifest, sums or signature a file is, or in whose folder it lies; None for any other.

    What its sums list is changed by what is appended, and a new file there is one that they do not list.
    """
    folder = next((each for each in path.absolute().parents if os.path.lexists(each / FOLDER_NAME)), None)
    if folder is not None or not os.path.lexists(path):
        return folder
    average = described_by(path)
    is_there = average is not None and any(map(os.path.lexists, (average, *sidecars(average))))
    return average if is_there else None


@contextmanager
def failures_appended(path: Path | None) -> Iterator[None]:
    """Append the reason to `path`, which was checked before, if the block raises an EmaError."""
    try:
        yield
    except _NotAppended:
        raise
    except EmaError as problem:
        if path is not None:
            append(path, failure_text(problem))
        raise


def append(path: Path, text: str) -> None:
    """Append to a file in one write, as several jobs may share it, and on a line of its own.

    Raises:
        OutputError: if it cannot be appended to.
    """
    content = (b"" if _ends_a_line(path) else b"\n\n") + text.encode()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            written = os.write(descriptor, content)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _NotAppended(
            f"cannot be appended to: {_reason(error)}; the rest is done", option="summary", subject=path
        ) from error
    if written < len(content):
        raise _NotAppended(
            f"took only {written} of {len(content)} bytes; the rest is done", option="summary", subject=path
        )


def _ends_a_line(path: Path) -> bool:
    """Return whether the file is empty or ends with a newline; True if it cannot be read."""
    try:
        if not path.is_file():  # a device may never end
            return True
        with path.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
            return file.read(1) in (b"", b"\n")
    except OSError:
        return True


def failure_text(problem: EmaError) -> str:
    """Return the reason why nothing was averaged, as Markdown."""
    advice = problem.advice(at_terminal)
    hint = f"\n\n{_code(advice, _MOST_CHARS * 5)}" if advice else ""
    message = _code(problem.message(at_terminal), 4000)
    return f"### ema-cli: nothing was averaged (exit {problem.exit_code})\n\n{message}{hint}\n\n"


def summary_text(averages: Averages) -> str:
    """Return the summary of averages, each with its path, as Markdown of less than 64 kB."""
    parts: list[str] = []
    nbytes = 0
    for number, (path, manifest) in enumerate(averages):
        part = _average_text(path, manifest)
        nbytes += len(part.encode())
        if nbytes > _MOST_BYTES:
            parts.append(f"And {plural(len(averages) - number, 'average')} more, for which there is no room here.\n\n")
            break
        parts.append(part)
    return "".join(parts)


def _average_text(path: Path, manifest: Manifest) -> str:
    """Return the summary of one average: at most some 55 kB, however long its names are."""
    inputs, outputs = manifest["inputs"], manifest["outputs"]
    tool = manifest["tool"]
    where = FOLDER_NAME if manifest["recipe"]["folder"] else sidecars(path)[0].name
    lines = [
        f"### ema-cli: {_code(path.as_posix())}",
        "",
        _law_line(manifest),
        "",
        *_fenced(_weight_lines(inputs)),
        "",
        f"{plural(len(outputs), 'file')}, {size(sum(output['bytes'] for output in outputs))}. sha256:",
        "",
        *_fenced(_sum_lines(outputs)),
        "",
        *_warning_lines(manifest["warnings"]),
        f"Made by {tool['name']} {_code(tool['version'])}; {_code(where)} tells the rest, and repeats it (`--recipe`).",
        "",
        "",
    ]
    return "\n".join(lines)


def _law_line(manifest: Manifest) -> str:
    recipe = manifest["recipe"]
    entered = sum(bool(row["weight"]) for row in manifest["inputs"])
    if manifest["approximation"] is not None:
        what = f"{plural(entered, 'stored average')} combined, {manifest['approximation']['relative_error']:.2%} off"
    else:
        what = f"{plural(entered, 'checkpoint')} averaged, {manifest['effective_checkpoints']:.1f} effective"
        age = recorded_age(manifest)
        what += "" if age is None else f", mean age {float(age.value):.4g}{age.unit}"
    dtype = f", written as {recipe['dtype']}" if recipe["dtype"] else ""
    return f"{what}: {', '.join(recipe_details(Recipe.from_dict(recipe)))}{dtype}."


def _weight_lines(inputs: Sequence[InputRow]) -> list[str]:
    """Return a line for each input, with its weight as a bar; if there are too many, for the heaviest."""
    weights = [float(str(row["weight"])) for row in inputs]
    heaviest = sorted(range(len(inputs)), key=lambda number: -abs(weights[number]))[:_MOST_ROWS]
    chosen = sorted(heaviest)
    names = [_shortened(str(inputs[number]["name"])) for number in chosen]
    clocks = [_shortened(shown_clock(inputs[number])) for number in chosen]
    wide, wider = max(map(len, names)), max(map(len, clocks))
    most = max(map(abs, weights)) or 1.0
    lines = []
    for number, name, clock in zip(chosen, names, clocks, strict=True):
        share = weights[number]
        bar = "\u2588" * round(max(share, 0.0) / most * _BAR_WIDTH)
        begin = f"{name:<{wide}}  {clock:>{wider}}" if wider else f"{name:<{wide}}"
        lines.append(f"{begin}  {share:>8.2%}  {bar}".rstrip())
    if len(inputs) > len(chosen):
        rest = sum(weights) - sum(weights[number] for number in chosen)
        lines.append(f"and {len(inputs) - len(chosen):,} more, each lighter, with {rest:.2%} together")
    return lines


def _sum_lines(outputs: Sequence[Mapping[str, object]]) -> list[str]:
    lines = [f"{output['sha256']}  {_shortened(str(output['name']))}" for output in outputs[:_MOST_ROWS]]
    return lines + ([f"and {len(outputs) - len(lines):,} more"] if len(outputs) > len(lines) else [])


def _warning_lines(warnings: Sequence[str]) -> list[str]:
    if not warnings:
        return []
    lines = [f"{plural(len(warnings), 'warning')}:", ""]
    lines += [f"- {_code(warning, _MOST_CHARS_OF_A_WARNING)}" for warning in warnings[:_MOST_WARNINGS]]
    more = len(warnings) - _MOST_WARNINGS
    return [*lines, *([f"- and {more:,} more"] if more > 0 else []), ""]


def _shortened(text: str, most: int = _MOST_CHARS) -> str:
    shown = printable(text)
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."


def _code(text: str, most: int = _MOST_CHARS) -> str:
    """Return `text` as inline code: between more backticks than it has in a row."""
    shown = _shortened(text, most)
    ticks = "`" * (_longest_run(shown) + 1)
    # A space at each end, which Markdown does not show, keeps backticks of the text apart from ours.
    inside = f" {shown} " if shown[:1] in ("`", " ", "") or shown[-1:] in ("`", " ") else shown
    return f"{ticks}{inside}{ticks}"


def _fenced(lines: Sequence[str]) -> list[str]:
    """Return lines as a block of code, in a fence that none of them closes."""
    fence = "`" * max(3, _longest_run("\n".join(lines)) + 1)
    return [f"{fence}text", *lines, fence]


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _reason(error: OSError | RuntimeError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
