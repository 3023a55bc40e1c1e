"""Every command and every example on the pages is run, and prints what the page says."""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import write_hf_run, write_torch_run
from tests.docs.pages import PAGES, README, ROOT, blocks, name_of
from tests.docs.table.runs import READ
from tests.formats.adapters.adapters import write_base
from tests.formats.adapters.adapters import write_run as write_adapters
from tests.inprocess import InProcess

RUN = {"console", "python"}
SHOWN = {"text", "json"}  # what a program or a person writes; not run
ELSEWHERE = {"sh": "test_demo.py", "py": "test_trainers.py"}  # run there: on the demo's run, with trainers' libraries

_OUTSIDE_QUOTES = re.compile(r"'[^']*'|\"[^\"]*\"")


def hugging_face(folder: Path) -> None:
    """Leave the run that most pages show."""
    write_hf_run(folder / "ckpts", [500, 1000, 1500, 2000, 2500, 3000], epoch_length=1000)


def until_its_end(folder: Path) -> None:
    """Leave a run whose trainer says that the training has ended."""
    write_hf_run(folder / "ckpts", [500, 1000, 1500, 2000, 2500, 3000], epoch_length=1000, most_steps=3000)


def in_a_bucket(folder: Path) -> None:
    """Put the run that most pages show into a store in memory, s3://bucket to this process; s3://models is empty."""
    from ema_cli.storage.names import StorePath
    from ema_cli.storage.store import clients
    from tests.storage.stores import obstore, put_folder

    hugging_face(folder)
    clients._clients.update({(f"s3://{name}", False): obstore.store.MemoryStore() for name in ("bucket", "models")})
    run = folder / "ckpts"
    files = {path.relative_to(run).as_posix(): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    put_folder(StorePath("s3://bucket/run"), files)


def without_clocks(folder: Path) -> None:
    """Leave runs whose files record no clock, and one that records batches only."""
    for number, step in enumerate((100, 200, 300, 400), start=1):
        write_torch_run(folder / "batches", [step])
        saved = folder / "numbered" / f"model_{number}.pt"
        saved.parent.mkdir(exist_ok=True)
        import torch

        tensors = torch.load(folder / "batches" / f"step-{step}.pt")["model"]
        torch.save(tensors, saved)


def every_trainer(folder: Path) -> None:
    """Leave a small run in the layout of each trainer."""
    for name, row in {
        "out": "Hugging Face Trainer",
        "saved": "torch.save, zip",
        "lightning_logs": "Lightning",
        "composer": "Composer",
        "accelerate": "Accelerate",
        "dcp": "torch.distributed.checkpoint",
        "torchtitan": "torchtitan",
        "verl": "FSDP's files of ranks",
        "deepspeed": "DeepSpeed",
        "timm": "timm",
        "fairseq": "fairseq",
        "nanogpt": "nanoGPT, litgpt",
        "diffusers": "Diffusers",
        "peft": "PEFT adapters",
        "flax": "Flax",
    }.items():
        READ[row][0](folder / name)


def adapters(folder: Path) -> None:
    """Leave a run of an adapter, and its base model."""
    write_base(folder / "base")
    write_adapters(folder / "run")


# What lies in the folder in which a page's commands run. Pages that are not here begin with nothing.
SETUPS: dict[str, Callable[[Path], None]] = {
    "README.md": hugging_face,
    "docs/how-to/adapters.md": adapters,
    "docs/how-to/buckets.md": in_a_bucket,
    "docs/how-to/choose-a-half-life.md": hugging_face,
    "docs/how-to/keep-up-with-a-training.md": until_its_end,
    "docs/how-to/many-machines.md": hugging_face,
    "docs/how-to/release.md": hugging_face,
    "docs/how-to/series.md": hugging_face,
    "docs/how-to/several-half-lives.md": hugging_face,
    "docs/how-to/weights-of-your-own.md": hugging_face,
    "docs/how-to/your-trainer.md": every_trainer,
    "docs/how-to/go-on-training.md": every_trainer,
    "docs/how-to/checkpoints-without-clocks.md": without_clocks,
    "docs/reference/exit-codes.md": hugging_face,
    "docs/reference/python.md": hugging_face,
    "docs/explanation/law.md": hugging_face,
}


class Terminal:
    """Run a page's commands and examples in one folder, one after the other."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.program = InProcess(folder, capsys)

    def run(self, command: str) -> tuple[int, str]:
        """Return a command's exit code and stdout, with stderr before it where the command says `2>&1`."""
        line = command.removesuffix(" 2>&1")
        words = shlex.split(line)
        if words[0] == "python" and len(words) == 2:
            return 0, self.python(words[1])
        if words[0] == "ema-cli" and not re.search(r"[|<>$*;&]", _OUTSIDE_QUOTES.sub("", line)):
            code, out = self.program(*words[1:])
            return code, (self.program.err if line != command else "") + out
        done = subprocess.run(command, shell=True, cwd=self.folder, capture_output=True, text=True)
        return done.returncode, done.stdout

    def python(self, name: str) -> str:
        """Return what a script of the page prints."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            runpy.run_path(str(self.folder / name), run_name="__main__")
        return printed.getvalue()

    def example(self, text: str) -> None:
        """Run an example, or write the file that its first line names (`# train.py`)."""
        named = re.match(r"# (\w+\.py)\n", text)
        (self.folder / (named[1] if named else "example.py")).write_text(text)
        if not named:
            self.python("example.py")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[[Path], None]], Path]:
    """Make each kind of folder once."""
    made: dict[str, Path] = {}

    def prepare(setup: Callable[[Path], None]) -> Path:
        if setup.__name__ not in made:
            made[setup.__name__] = tmp_path_factory.mktemp(setup.__name__)
            setup(made[setup.__name__])
        return made[setup.__name__]

    return prepare


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize(
    "page", [page for page in PAGES if RUN & {block.language for block in blocks(page)}], ids=name_of
)
def test_a_page_s_commands_print_what_it_shows(
    page: Path,
    prepared: Callable[[Callable[[Path], None]], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The blocks run in order, in one folder; a command that shows an error fails, every other one succeeds."""
    folder = tmp_path / "page"
    if setup := SETUPS.get(name_of(page)):
        shutil.copytree(prepared(setup), folder)
    else:
        folder.mkdir()
    for variable in ("COLUMNS", "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "FORCE_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.chdir(folder)
    terminal = Terminal(folder, capsys)
    for block in blocks(page):
        if block.language == "python":
            terminal.example(block.text)
        elif block.language == "console":
            for step in filter(None, re.split(r"^\$ ", block.text, flags=re.MULTILINE)):
                command, _, expected = step.partition("\n")
                code, out = terminal.run(command)
                assert out.strip() == expected.strip(), command
                failed = expected.startswith("error: ") or '"error": {' in expected
                assert (code != 0) == failed, (command, code, terminal.program.err)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_has_a_language_that_a_test_knows(page: Path) -> None:
    """No block escapes: it is run here, run elsewhere, or shown as text."""
    for block in blocks(page):
        assert block.language in RUN | SHOWN | set(ELSEWHERE), block
    assert page.read_text("utf-8").count("\n```") == 2 * len(blocks(page)) - page.read_text("utf-8").startswith("```")


def test_every_setup_belongs_to_a_page_with_commands() -> None:
    """A page that goes takes its set-up along."""
    for name in SETUPS:
        assert RUN & {block.language for block in blocks(ROOT / name)}, name


def test_the_examples_in_the_readme_leave_what_they_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example of live training writes one file with the averages under the model's names."""
    from safetensors.numpy import load_file

    monkeypatch.chdir(tmp_path)
    terminal = Terminal(tmp_path, capsys)
    for block in blocks(README):
        if block.language == "python":
            terminal.example(block.text)
    assert load_file(tmp_path / "ema.safetensors").keys() == {"weight", "bias"}
