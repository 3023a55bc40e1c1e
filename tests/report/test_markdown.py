"""What is appended for the page of a job: true, small, and no markup but ours."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from ema_cli.errors import EmaError, OutputError
from ema_cli.report import markdown
from ema_cli.report.markdown import append, check_summary, failure_text, summary_text
from ema_cli.writing.target import Target
from tests.conftest import Cli, write_hf_run, write_torch_run

MOST_BYTES = 64_000
LAWS = {"half_life": "50ba", "smoothing": None, "profile": None, "sigma_rel": None}
RECIPE = {
    "update_interval": "1ba", "start": None, "stop": None, "last": None, "bias_correction": False, "dtype": None,
    "folder": True,
}  # fmt: skip


def manifest(names: list[str], *, files: list[str] | None = None, warnings: list[str] | None = None) -> dict[str, Any]:
    """Return as much of a manifest as a summary tells, with equal weights."""
    return {
        "tool": {"name": "ema-cli", "version": "0.1.0"},
        "recipe": {**LAWS, **RECIPE},
        "inputs": [
            {"name": name, "clock": f"{number}ba", "clocks": {}, "weight": 1 / len(names)}
            for number, name in enumerate(names, 1)
        ],
        "outputs": [{"name": name, "bytes": 10, "sha256": "0" * 64} for name in files or ["model.safetensors"]],
        "effective_checkpoints": 5.1,
        "mean_age": "993.7ba",
        "approximation": None,
        "warnings": warnings or [],
    }


def tokens(text: str) -> list[Token]:
    """Return what Markdown makes of a text, tables and all."""
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return [each for token in parser.parse(text) for each in (token, *(token.children or ()))]


PLAIN = {"heading_open", "heading_close", "paragraph_open", "paragraph_close", "inline", "text", "code_inline", "fence"}
LISTS = {"bullet_list_open", "bullet_list_close", "list_item_open", "list_item_close"}


def test_a_summary_has_path_law_weights_and_sums(cli: Cli, tmp_path: Path):
    """Path, law, weights drawn in the order of the run, sums as in SHA256SUMS, and where the rest is."""
    write_hf_run(tmp_path / "ckpts", [500, 1000, 1500])
    done = cli("average", "ckpts", "--half-life", "500ba", "-o", "release", "--summary", "summary.md")
    assert (done.code, done.out) == (0, "release\n"), done
    sums = (tmp_path / "release/SHA256SUMS").read_text().splitlines()
    listed = "\n".join(line for line in sums if not line.endswith("ema-manifest.json"))
    bar = "\u2588" * 12
    made = (tmp_path / "release/ema-manifest.json").read_text()
    nbytes = sum(each["bytes"] for each in json.loads(made)["outputs"]) / 1000
    assert (
        (tmp_path / "summary.md").read_text()
        == f"""### ema-cli: `release`

3 checkpoints averaged, 2.7 effective, mean age 375ba: half-life 500ba, update interval 1ba.

```text
checkpoint-500    500ba    25.00%  {bar}
checkpoint-1000  1000ba    25.00%  {bar}
checkpoint-1500  1500ba    50.00%  {bar}{bar}
```

4 files, {nbytes:.3g} kB. sha256:

```text
{listed}
```

Made by ema-cli `0.1.0`; `ema-manifest.json` tells the rest, and repeats it (`--recipe`).

"""
    )


def test_a_summary_comes_after_what_is_in_the_file(cli: Cli, tmp_path: Path):
    """What is in the file stays; each average comes after it, of several half-lives one after the other."""
    write_torch_run(tmp_path / "ckpts", [10, 20])
    (tmp_path / "summary.md").write_text("# Before\n")
    laws = ["--half-life", "10ba", "--half-life", "20ba", "-o", "sweep/ema-{half_life}.pt"]
    (tmp_path / "sweep").mkdir()
    assert cli("average", "ckpts", *laws, "-f", "--summary", "summary.md").code == 0
    assert cli("average", "ckpts", "--profile", "uniform", "-o", "u.pt", "--summary", "summary.md").code == 0
    text = (tmp_path / "summary.md").read_text()
    assert text.startswith("# Before\n### ema-cli: `sweep/ema-10ba.pt`\n")
    assert [line for line in text.splitlines() if line.startswith("#")][2:] == [
        "### ema-cli: `sweep/ema-20ba.pt`",
        "### ema-cli: `u.pt`",
    ]
    assert "`u.pt.manifest.json` tells the rest" in text


def test_warnings_are_told(cli: Cli, tmp_path: Path):
    """Those of the manifest, all that were given."""
    write_torch_run(tmp_path / "ckpts", [10, 2000])
    assert cli("average", "ckpts", "--half-life", "10ba", "-o", "x.pt", "--summary", "summary.md").code == 0
    warnings = json.loads((tmp_path / "x.pt.manifest.json").read_text())["warnings"]
    assert warnings
    text = (tmp_path / "summary.md").read_text()
    assert text.count("\n- `") == len(warnings)
    assert all(f"- `{each}`\n" in text for each in warnings)


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--min-count", "3"], 6), (["--stop", "1ba"], 4), (["-o", "x.zip"], 2)]
)
def test_failures_are_told(cli: Cli, tmp_path: Path, arguments: list[str], code: int):
    """Where nothing is averaged, the summary says why, as the error does."""
    write_torch_run(tmp_path / "ckpts", [10, 20])
    done = cli("average", "ckpts", "--half-life", "10ba", *arguments, "--summary", "summary.md")
    assert done.code == code, done
    message = done.err.splitlines()[0].removeprefix("error: ")
    told = (tmp_path / "summary.md").read_text()
    assert told.startswith(f"### ema-cli: nothing was averaged (exit {code})\n\n`{message}`\n"), told


def test_a_summary_that_cannot_be_is_refused_before_anything_is_read(cli: Cli, tmp_path: Path):
    """A folder, a file in no folder, an input, what is of one, the output, and what is beside or in it: exit 5."""
    write_hf_run(tmp_path / "ckpts", [500, 1000])
    write_torch_run(tmp_path / "files", [1, 2])
    config = tmp_path / "ckpts/checkpoint-500/config.json"
    before = config.read_bytes()
    assert cli("average", "ckpts", "--half-life", "1000ba", "-o", "there").code == 0
    for run, output, path in (
        ("ckpts", "x.pt", "ckpts"),
        ("ckpts", "x.pt", "none/summary.md"),
        ("ckpts", "x.pt", "ckpts/checkpoint-500/config.json"),
        ("ckpts", "x.pt", "ckpts/checkpoint-500/new.md"),
        ("files", "x.pt", "files/step-1.pt"),
        ("files", "x.pt", "x.pt"),
        ("files", "x.pt", "x.pt.sha256"),
        ("ckpts", "there", "there/README.md"),
    ):
        done = cli("average", run, "--half-life", "1ba", "-o", output, "--force", "--summary", path)
        assert done.code == 5, (path, done)
        assert done.err.startswith("error: --summary: "), done
        assert not (tmp_path / "x.pt").exists()
    assert config.read_bytes() == before
    others = tmp_path / "there/model.safetensors"
    before = others.read_bytes()
    done = cli("average", "nowhere", "--half-life", "1ba", "--summary", others)  # a failure is not appended either
    assert (done.code, "is an average of ema-cli's" in done.err, others.read_bytes() == before) == (5, True, True), done
    done = cli("average", "ckpts", "--half-life", "1ba", "--no-manifest", "--summary", "summary.md")
    assert done.code == 2


def test_nothing_is_appended_where_nothing_was_done(cli: Cli, tmp_path: Path):
    """A dry run leaves no summary."""
    write_torch_run(tmp_path / "ckpts", [10, 20])
    assert cli("average", "ckpts", "--half-life", "10ba", "--dry-run", "--summary", "summary.md").code == 0
    assert not (tmp_path / "summary.md").exists()


def test_an_append_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A full disk after the average: exit 5, which says that the rest is done, and is not told as a failure of it."""
    path = tmp_path / "summary.md"
    monkeypatch.setattr(os, "write", lambda descriptor, content: 3)
    with pytest.raises(OutputError, match="took only 3 of 5 bytes; the rest is done"), markdown.failures_appended(path):
        append(path, "hello")

    def fail(descriptor: int, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", fail)
    with (
        pytest.raises(OutputError, match="No space left on device; the rest is done"),
        markdown.failures_appended(path),
    ):
        append(path, "hello")
    monkeypatch.undo()
    append(path, "more")
    assert path.read_text() == "more"


def test_a_heading_begins_a_line(tmp_path: Path):
    """A file that ends within a line has it ended first: a heading in it would be none. One that does not, is left."""
    path = tmp_path / "summary.md"
    path.write_text("a last line")
    append(path, "### one\n\n")
    append(path, "### two\n")
    assert path.read_text() == "a last line\n\n### one\n\n### two\n"


def test_devices_and_pipes(tmp_path: Path):
    """A device takes a summary; a pipe, which could hold the job up, does not."""
    check_summary(Path("/dev/null"))
    append(Path("/dev/null"), "x")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="neither a regular file nor a device"):
        check_summary(tmp_path / "pipe")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OutputError, match="summary="):
        check_summary(tmp_path / "loop")


@pytest.mark.parametrize(
    ("name", "fact"),
    [
        ("file/s.md", "{}/file is no folder"),
        ("file/more/s.md", "{}/file is no folder"),
        ("s" * 300, "no file can have that name"),
        ("none/s.md", "the folder {}/none does not exist"),
    ],
)
def test_a_place_where_no_file_can_be_is_refused_at_once(name: str, fact: str, tmp_path: Path):
    """In a file, where `mkdir -p` does not help; under too long a name, which was found when all was done."""
    (tmp_path / "file").touch()
    with pytest.raises(OutputError) as raised:
        check_summary(tmp_path / name)
    assert raised.value.fact == fact.format(tmp_path)
    assert (raised.value.hint or "").startswith("make it first: mkdir -p" if "none" in name else "as --summary")


def test_a_folder_without_rights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Who may not write there, or not look, is told at once, and of which option it is."""
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.X_OK)
    with pytest.raises(OutputError, match=r"summary=.*nothing can be written to"):
        check_summary(tmp_path / "s.md")


def test_links_are_followed(tmp_path: Path):
    """A link to a checkpoint is that checkpoint."""
    (tmp_path / "a.pt").write_bytes(b"x")
    (tmp_path / "link.md").symlink_to("a.pt")
    target = Target(tmp_path / "out", is_folder=True)
    check_summary(tmp_path / "link.md", target)
    with pytest.raises(OutputError, match="is of an input"):
        check_summary(tmp_path / "link.md", target, [tmp_path / "a.pt"])


@pytest.mark.parametrize(
    "content",
    [
        b"text\0\0",
        b"\x89PNG\r\n\x1a\n",
        b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n",
        "# Job\n".encode("utf-16"),
    ],
)
def test_nothing_is_appended_to_what_is_no_text(tmp_path: Path, content: bytes):
    """Something with zeros, a picture, a document, a text of two bytes a character: what is appended would spoil it."""
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(OutputError, match="is no text"):
        check_summary(path)
    assert path.read_bytes() == content


def test_text_of_any_language_and_length_is_appended_to(tmp_path: Path):
    """Where the look ends within a character, it is text all the same; an empty file is, too."""
    path = tmp_path / "summary.md"
    for text in ("", "x" + "\u00e9" * (1 << 16)):
        path.write_text(text, encoding="utf-8")
        check_summary(path)


def test_nothing_is_appended_to_what_belongs_to_an_average(cli: Cli, tmp_path: Path):
    """A manifest, sums, a signature, and all in its folder, also by a link: what was appended broke it."""
    write_hf_run(tmp_path / "ckpts", [10, 20])
    for output in ("two", "one.safetensors"):
        assert cli("average", "ckpts", "--profile", "uniform", "-o", output).code == 0
    (tmp_path / "one.safetensors.sig").write_text("{}")
    (tmp_path / "link.md").symlink_to("two/README.md")
    for name, average in (
        ("one.safetensors.manifest.json", "one.safetensors"),
        ("one.safetensors.sha256", "one.safetensors"),
        ("one.safetensors.sig", "one.safetensors"),
        ("two/ema-manifest.json", str(tmp_path / "two")),
        ("two/SHA256SUMS", str(tmp_path / "two")),
        ("two/model.sig", str(tmp_path / "two")),
        ("two/README.md", str(tmp_path / "two")),
        ("two/new.md", str(tmp_path / "two")),
        ("link.md", str(tmp_path / "two")),
    ):
        done = cli("average", "ckpts", "--profile", "uniform", "-o", "x.pt", "--summary", name)
        told = f"error: --summary: {name}: is of an average, {average}"
        assert (done.code, done.err.splitlines()[0]) == (5, told)
    assert cli("verify", "two", "one.safetensors").code == 0
    for name in ("some.sig", "new.sha256"):
        (tmp_path / "some.sig").touch()
        check_summary(tmp_path / name)


def test_ten_thousand_checkpoints_are_cut():
    """The heaviest are shown, in their order, and what the others come to."""
    many = manifest([f"step-{number}" for number in range(10_000)])
    heavy = many["inputs"][5000]
    heavy["weight"] = 0.5
    text = summary_text([(Path("out"), many)])
    assert len(text.encode()) < 5000
    rows = text.split("```text\n")[1].splitlines()
    shown = rows[: rows.index("```")]
    assert shown[:2] == [
        f"step-0        1ba     0.01%{'':0}",
        "step-1        2ba     0.01%",
    ]
    assert [row for row in shown if row.startswith("step-5000")] == [f"step-5000  5001ba    50.00%  {chr(0x2588) * 24}"]
    assert shown[-1] == "and 9,960 more, each lighter, with 99.60% together"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["`" * 5000, "\U0001f600" * 5000, "\x1b[31m" * 900, "\n# x\n" * 500, "a" * 100_000])
def test_the_largest_is_below_64_kb(name: str):
    """However long and odd names, files and warnings are, and however many, averages included."""
    worst = manifest([name] * 300, files=[name] * 300, warnings=[name] * 300)
    for number in (1, 3, 200):
        text = summary_text([(Path(name), worst)] * number)
        assert 1000 < len(text.encode()) < MOST_BYTES
    assert text.rstrip().endswith("more, for which there is no room here.")
    assert len(failure_text(EmaError(name, hint=name)).encode()) < MOST_BYTES


HOSTILE = [
    "```", "````\n# x", "`a`", "|a|b|", "<script>alert(1)</script>", "<img src=x onerror=y>", "[a](https://b.c)",
    "![a](b)", "https://example.org", "@somebody", "#1", "**bold**", "_it_", "$x$", "&amp;", "\\", "\\`", "- a", "1. a",
    "> a", "\u202e", "\udc80", " ", "", "~~~", "::error::x", "\x00", "\x07",
]  # fmt: skip


@pytest.mark.slow
@given(st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=20)), min_size=1, max_size=6).map("".join))
def test_names_are_never_markup(name: str):
    """Of a summary, whatever names are in it, Markdown makes a heading, paragraphs, a list and code; names are code."""
    text = summary_text([(Path(name or "x"), manifest([name, "b"], files=[name], warnings=[name]))])
    text += failure_text(EmaError(name, hint=name))
    kinds = {token.type for token in tokens(text)}
    assert kinds <= PLAIN | LISTS
    assert sum(token.type == "heading_open" for token in tokens(text)) == 2
    assert sum(token.type == "fence" for token in tokens(text)) == 2
    words = " ".join(token.content for token in tokens(text) if token.type == "text")
    assert set(words) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;()-%")
