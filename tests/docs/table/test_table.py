"""Each row of the tables of formats: what it says is read is averaged right, what it says is refused is refused."""

from __future__ import annotations

import gzip
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import COMPOSER, Cli
from tests.docs.pages import DOCS, table
from tests.docs.table.builders import LAW, STEPS, Net, save, state_dict
from tests.docs.table.runs import READ, composer

FORMATS = DOCS / "reference" / "formats.md"


def rows(heading: str) -> list[str]:
    """Return the first cells of the table whose first heading is `heading`."""
    return [cells[0] for cells in table(FORMATS, heading)]


def test_the_table_of_what_is_read_is_tested_whole() -> None:
    """Every row has a test here, and every test here has a row."""
    assert rows("read") == list(READ)


def load_output(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file, or of all files in a folder, those in folders of it with the folder before them."""
    if path.is_file():
        return load_file(path)
    files = {file: file.parent.relative_to(path).as_posix() for file in sorted(path.rglob("*.safetensors"))}
    return {
        name if folder == "." else f"{folder}/{name}": tensor
        for file, folder in files.items()
        for name, tensor in load_file(file).items()
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize(("row", "number"), [(row, number) for row in READ for number in range(len(READ[row]))])
def test_a_checkpoint_that_the_table_calls_read_is_averaged(row: str, number: int, cli: Cli, tmp_path: Path) -> None:
    """The untouched run gives the average that float64 arithmetic gives, rounded once."""
    case = READ[row][number](tmp_path / "run")
    law = () if "--half-life" in case.arguments else LAW
    target = "out" if len(case.prefixes) > 1 else "out.safetensors"
    done = cli("average", "run", *law, *case.arguments, "--strict", "-o", target)
    assert done.code == 0, done
    written, expected = load_output(tmp_path / target), case.expected()
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        assert written[name].dtype == tensor.dtype
        torch.testing.assert_close(written[name], tensor, rtol=0 if case.dtype is None else 2**-8, atol=2e-7, msg=name)


def parts(*names: str) -> Callable[[Path], Path]:
    """Return a builder of a DeepSpeed folder with these files."""

    def build(run: Path) -> Path:
        for name in names:
            save(run / "global_step5" / name, {"module": state_dict(1), "global_steps": 5})
        return run

    return build


def with_tensors(tensors: dict[str, torch.Tensor], suffix: str = "safetensors") -> Callable[[Path], Path]:
    """Return a builder of a run whose checkpoints hold these tensors beside an ordinary one."""

    def build(run: Path) -> Path:
        run.mkdir()
        for step in STEPS:
            whole = {"norm.weight": torch.ones(2), **tensors}
            path = run / f"step-{step}.{suffix}"
            save_file(whole, path) if suffix == "safetensors" else torch.save({"model": whole}, path)
        return run

    return build


def compressed(run: Path) -> Path:
    """Write a compressed save of Composer's."""
    run.mkdir()
    save(run.parent / "plain.pt", composer(1))
    (run / "ep0-ba1-rank0.pt.gz").write_bytes(gzip.compress((run.parent / "plain.pt").read_bytes()))
    return run


def deflated(run: Path) -> Path:
    """Write a torch file whose entries another program has compressed."""
    run.mkdir()
    save(run.parent / "plain.pt", {"model": state_dict(1), "step": 1})
    with (
        zipfile.ZipFile(run.parent / "plain.pt") as old,
        zipfile.ZipFile(run / "step-1.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return run


def script(run: Path) -> Path:
    """Write a TorchScript archive."""
    run.mkdir()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(run / "step-1.pt"))
    return run


def hooked(run: Path) -> Path:
    """Write a module with a hook on its state dict."""
    module = Net(1)
    module.register_state_dict_post_hook(keep)
    save(run / "step-1.pt", module)
    return run


def keep(*_: object) -> None:
    """Stand for a hook."""


def one_rank(run: Path) -> Path:
    """Write a folder of torch_checkpointing's whose items are not in torch.save's format."""
    (run / "step-1").mkdir(parents=True)
    save_file(state_dict(1), run / "step-1" / "model_0.safetensors")
    (run / "step-1" / "metadata.pkl").write_bytes(b"\x80\x04N.")
    return run


def saved_model(run: Path) -> Path:
    """Write what marks a model of TensorFlow's."""
    (run / "100").mkdir(parents=True)
    (run / "100" / "saved_model.pb").write_bytes(b"")
    return run


U8, I32, HALF = torch.uint8, torch.int32, torch.float16
REFUSED: dict[str, tuple[Callable[[Path], Path], int, str]] = {
    "A model without its weights": (
        with_tensors({"q.weight": torch.zeros(0)}),
        3,
        r"'q.weight' has the shape \[0\].*stage3_gather_16bit_weights_on_model_save.*global_stepN",
    ),
    "DeepSpeed in other parts": (
        parts(*(f"mp_rank_0{rank}_model_states.pt" for rank in (0, 1))),
        3,
        "2 parts.*ds_to_universal",
    ),
    "8 bits and fewer": (
        with_tensors({"q.weight": torch.zeros(4).to(torch.float8_e4m3fn)}),
        3,
        "'q.weight' cannot be averaged: F8_E4M3.*--copy",
    ),
    "packed weights": (
        with_tensors({"q.qweight": torch.zeros(4, 2, dtype=I32), "q.scales": torch.ones(4, dtype=HALF)}),
        3,
        "'q.qweight' cannot be averaged: packed weights.*--copy",
    ),
    "_extra_state": (with_tensors({"q._extra_state": torch.zeros(4, dtype=U8)}), 3, "'q._extra_state'.*--copy"),
    "DoRA": (with_tensors({"q.lora_magnitude_vector": torch.ones(4)}), 3, "'q.lora_magnitude_vector'.*DoRA"),
    "compressed saves": (compressed, 3, r"compressed with gzip.*gunzip .*ep0-ba1-rank0.pt.gz"),
    "compressed or encrypted records": (deflated, 3, "is compressed"),
    "TorchScript": (script, 3, r"a program.*state_dict\(\)"),
    "sparse, nested, quantized, subclassed tensors": (
        with_tensors({"s": torch.ones(2, 2).to_sparse()}, "pt"),
        3,
        "'s' cannot be averaged: .*sparse",
    ),
    "modules with state-dict hooks": (hooked, 3, r"hooks that change its state dict.*state_dict\(\)"),
    "a rank's part of a model": (one_rank, 3, "for each item and each rank.*torch.distributed.checkpoint"),
    "Flax in shards, TensorFlow, GGUF": (saved_model, 3, "TensorFlow SavedModel.*safetensors"),
    "averages already": (lambda run: COMPOSER / "ema-was-on", 4, "averaged already.*--weights raw"),
}


def test_the_table_of_what_is_refused_is_tested_whole() -> None:
    """Every row has a test here, and every test here has a row."""
    assert rows("refused") == list(REFUSED)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("row", REFUSED)
def test_a_checkpoint_that_the_table_calls_refused_is_one_error(row: str, cli: Cli, tmp_path: Path) -> None:
    """One error with its code, the reason and the way out; nothing is written."""
    build, code, message = REFUSED[row]
    run = build(tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    done = cli("average", run, *LAW)
    assert done.code == code, done
    assert re.search(message, done.err, re.DOTALL), done.err
    assert done.err.count("error: ") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "names",
    [
        ("mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"),
        ("mp_rank_00_model_states.pt", "layer_03-model_00-model_states.pt"),
        ("mp_rank_00_model_states.pt", "layer_03-model_states.pt"),
        ("mp_rank_00_model_states.pt", "layer_0_expert_0_mp_rank_00_model_states.pt"),
    ],
)
def test_every_way_to_cut_a_model_is_refused(names: tuple[str, ...], cli: Cli, tmp_path: Path) -> None:
    """Tensor, pipeline and expert parallel parts are no model: an error, and the way to put them together."""
    parts(*names)(tmp_path / "run")
    done = cli("average", "run", *LAW)
    assert (done.code, "cut into" in done.err, "together first" in done.err) == (3, True, True), done
