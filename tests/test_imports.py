"""What each entry point loads: averaging files needs no torch, help needs no numpy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from ema_cli.folding.kernel.choice import chosen_kernel
from tests.conftest import write_hf_run, write_torch_run
from tests.loaded import loaded_by


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["average", "--help"],
        ["inspect", "--help"],
        ["compare", "--help"],
        ["report", "--help"],
    ],
)
def test_help_loads_neither_torch_nor_numpy(arguments: list[str], tmp_path: Path):
    """Help is instant: no arithmetic library is imported for it."""
    loaded = loaded_by(arguments, tmp_path)
    assert not loaded & {"torch", "numpy", "safetensors", "pydantic", "ema_cli.runs.run", "ema_cli.law.time", "json"}
    assert not [name for name in loaded if name.startswith("ema_cli.formats")]


@pytest.mark.slow
def test_inspect_loads_neither_torch_nor_numpy(tmp_path: Path):
    """Headers and clocks need no arithmetic library, for safetensors and for pickled checkpoints."""
    write_hf_run(tmp_path / "hf", [100, 200])
    write_torch_run(tmp_path / "pt", [100, 200])
    for folder in ("hf", "pt"):
        assert not loaded_by(["inspect", folder, "--half-life", "50ba"], tmp_path) & {"torch", "numpy", "obstore"}


@pytest.mark.slow
def test_a_format_is_loaded_where_there_is_one_to_read(tmp_path: Path):
    """Safetensors need nothing that reads pickles, and files of torch.save nothing of torch.distributed.checkpoint."""
    write_hf_run(tmp_path / "hf", [100, 200])
    write_torch_run(tmp_path / "pt", [100, 200])
    pickles = {
        f"ema_cli.formats.{name}"
        for name in ("pickles.unpickle", "pickles.values", "trainers.places", "torch_save.zip_container")
    }
    folders = {f"ema_cli.formats.dcp.{name}" for name in ("checkpoint", "metadata", "model", "tensors")}
    others = {
        "ema_cli.formats.torch_save.strided",
        "ema_cli.formats.torch_save.legacy_container",
        "rich.progress",
        "statistics",
    }
    for optimizer in (tmp_path / "hf").rglob("optimizer.pt"):  # which may say that it is schedule-free
        optimizer.unlink()
    assert not loaded_by(["inspect", "hf", "--half-life", "50ba"], tmp_path) & (pickles | folders | others)
    loaded = loaded_by(["inspect", "pt", "--half-life", "50ba"], tmp_path)
    assert pickles <= loaded
    assert not loaded & (folders | others)


@pytest.mark.slow
def test_average_loads_neither_torch_nor_numpy(tmp_path: Path):
    """Nor numpy, unless something is not finite; typer imports pydantic where it converts options itself."""
    write_hf_run(tmp_path / "hf", [100, 200])
    write_torch_run(tmp_path / "pt", [100, 200])
    for folder in ("hf", "pt"):
        for more in ([], ["--like-input"]):
            output = f"out-{folder}{'.pt' if more and folder == 'pt' else ''}"
            loaded = loaded_by(["average", folder, "--half-life", "50ba", "-o", output, "--force", *more], tmp_path)
            assert not loaded & {"torch", "pydantic"}
            assert ("numpy" in loaded) == (str(chosen_kernel()).startswith("numpy")), "only where the kernel is numpy"


@pytest.mark.slow
def test_a_command_loads_what_it_does(tmp_path: Path):
    """An average of safetensors reads no pickles, pieces or stored averages, and neither signs nor draws tables."""
    write_hf_run(tmp_path / "hf", [100, 200])
    for optimizer in (tmp_path / "hf").rglob("optimizer.pt"):  # which may say that it is schedule-free
        optimizer.unlink()
    average = ["average", "hf", "--half-life", "50ba", "-o", "out.safetensors"]
    others = {
        "cli.tune_options", "cli.tables", "cli.json_printer", "comparing.distance", "formats.dcp.checkpoint",
        "formats.pickles.unpickle", "formats.pieces.rank_shards", "formats.torch_save.zip_container",
        "manifest.signing", "online.ema", "release.verify", "report.page", "runs.stored", "storage.object_place",
        "storage.store.claim", "tuning.tune",
    }  # fmt: skip
    libraries = {"obstore", "rich", "random", "statistics", "importlib.metadata"}
    loaded = loaded_by(average, tmp_path)
    assert not loaded & (libraries | {f"ema_cli.{name}" for name in others})
    reading = {"ema_cli.averaging", "ema_cli.folding.fold", "ema_cli.writing.outputs", "ctypes"}
    assert not loaded_by(["inspect", "hf"], tmp_path) & reading
    assert not loaded_by(["--version"], tmp_path) & {"ema_cli.formats", "ema_cli.runs.run", "rich"}


def test_the_law_loads_no_numpy():
    """Plans are plain Python."""
    script = "import sys, ema_cli.planning.plan; print({'torch', 'numpy', 'typer', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.slow
def test_the_library_loads_no_torch(tmp_path: Path):
    """Opening, planning and averaging by `import ema_cli` load no torch; the word EMA alone does."""
    write_hf_run(tmp_path / "run", [100, 200])
    script = (
        "import sys\nfrom pathlib import Path\nimport ema_cli\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)\n"
        "from ema_cli import Recipe, Time, average, make_plan, open_run, parse_target\n"
        "plan = make_plan(open_run([Path('run')]), Recipe(half_life=Time.parse('50ba')))\n"
        "average(plan, parse_target(Path('x.safetensors')))\n"
        "assert 'torch' not in sys.modules\n"
        "from ema_cli import EMA\nassert 'torch' in sys.modules and EMA.__name__ == 'EMA'\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)


@pytest.mark.slow
def test_without_torch_the_online_half_says_what_to_install(tmp_path: Path):
    """Where torch is missing, files are averaged, and EMA and compute_ema are ImportErrors that name the extra."""
    write_hf_run(tmp_path / "run", [100, 200])
    script = (
        "import sys\nfrom pathlib import Path\nsys.modules['torch'] = None\n"
        "from ema_cli import Recipe, Time, average, make_plan, open_run, parse_target\n"
        "plan = make_plan(open_run([Path('run')]), Recipe(half_life=Time.parse('50ba')))\n"
        "average(plan, parse_target(Path('x.safetensors')))\n"
        "for name in ('EMA', 'compute_ema'):\n"
        "    try:\n        exec(f'from ema_cli import {name}')\n"
        "    except ImportError as error:\n        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"{name} needs torch: pip install 'ema-cli[torch]'" for name in ("EMA", "compute_ema")
    ]


def test_the_public_names_resolve():
    """Every name in __all__ is there, and the docstring's example is what the library does."""
    import ema_cli

    for name in ema_cli.__all__:
        assert getattr(ema_cli, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ema_cli.nothing  # noqa: B018


def test_the_public_names_are_listed_alike():
    """The names for the type checker, for `__getattr__` and for `*` are the same."""
    import ema_cli

    tree = ast.parse(Path(ema_cli.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imported = {alias.name: node.module for node in block.body for alias in getattr(node, "names", ())}
    homes = {name: getattr(ema_cli, name).__module__ for name in imported}
    assert sorted([*imported, "__version__"]) == sorted(ema_cli.__all__)
    assert homes == imported
