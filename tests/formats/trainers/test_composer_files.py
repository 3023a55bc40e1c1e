"""What Composer keeps for Hugging Face in its checkpoints, made by hand: files of a folder that loads, or an error."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ema_cli.checkpoint import InnerFiles
from ema_cli.errors import CheckpointError
from ema_cli.formats import open_checkpoint
from tests.conftest import Cli, make_tensors, oracle

CONFIG = {"model_type": "tiny", "id2label": {"0": "été"}, "eps": 1e-05, "limit": [0.0, float("inf")], "none": None}
TOKENIZER = {
    "tokenizer.json": {"file_extension": ".json", "content": {"model": {"vocab": {"層": 0, "a": 1}}, "empty": {}}},
    "tokenizer_config.json": {"file_extension": ".json", "content": {"model_max_length": 10**30, "pad": True}},
    "vocab": {"file_extension": ".txt", "content": ["[PAD]", "a", ""]},  # as older versions name it
    "spiece.model": {"file_extension": ".model", "content": bytes(range(256))},
    "tokenization_own.py": {"file_extension": ".py", "content": "raise SystemExit\n"},
    "chat_template.jinja": {"file_extension": ".jinja", "content": "{{ messages }}\n"},
}
FILES = {
    "tokenizer.json": TOKENIZER["tokenizer.json"]["content"],
    "tokenizer_config.json": TOKENIZER["tokenizer_config.json"]["content"],
    "vocab.txt": b"[PAD]\na\n",
    "spiece.model": bytes(range(256)),
    "tokenization_own.py": b"raise SystemExit\n",
    "chat_template.jinja": b"{{ messages }}\n",
}
ADAPTER = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "some/base"}


def integrations(config: Any = CONFIG, tokenizer: Any = TOKENIZER, peft: Any = None, kind: str = "own.Model") -> Any:
    """Return `state.integrations`, as Composer's HuggingFaceModel describes itself."""
    model: dict[str, Any] = {"config": {"file_extension": ".json", "content": config, "class": kind}}
    if peft is not None:
        model["peft_config"] = {"file_extension": ".json", "content": peft}
    return {"huggingface": {"model": model, "tokenizer": tokenizer}}


def write(path: Path, tensors: dict[str, torch.Tensor], kept: Any, batch: int = 1) -> Path:
    """Save a checkpoint as Composer does."""
    timestamp = {"Timestamp": {"epoch": 0, "batch": batch, "sample": 4 * batch, "token": 0, "batch_in_epoch": batch}}
    path.parent.mkdir(exist_ok=True)
    torch.save({"state": {"model": tensors, "timestamp": timestamp, "integrations": kept}, "rng": {}}, path)
    return path


def wrapped(batch: int, prefix: str = "model.") -> dict[str, torch.Tensor]:
    """Return the tensors of a small model in a wrapper."""
    return {f"{prefix}{name}": tensor for name, tensor in make_tensors(batch).items()}


def inner_files(path: Path) -> InnerFiles:
    """Return what lies inside the checkpoint, which holds something."""
    pretrained = open_checkpoint(path).pretrained
    assert pretrained is not None
    assert pretrained.inner_files is not None
    return pretrained.inner_files


def write_run(folder: Path, kept: Any, batches: Sequence[int] = (1, 2), prefix: str = "model.") -> None:
    """Save checkpoints of a run."""
    for batch in batches:
        write(folder / f"ep0-ba{batch}-rank0.pt", wrapped(batch, prefix), kept, batch)


def contents(folder: Path) -> dict[str, Any]:
    """Return the files that came from the checkpoint: JSON as values, the others as bytes."""
    ours = {"README.md", "ema-manifest.json", "SHA256SUMS", "model.safetensors", "adapter_model.safetensors"}
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in ours}
    return {name: json.loads(text) if name.endswith(".json") else text for name, text in files.items()}


def test_a_folder_has_the_files_and_the_names_that_load(cli: Cli, tmp_path: Path):
    """Configuration, tokenizer and bare names go into a folder, by default; config.json says the dtype."""
    write_run(tmp_path / "run", integrations())
    done = cli("average", "run", "--half-life", "1ba")
    assert (done.code, done.out) == (0, "ema-1ba\n"), done
    assert contents(tmp_path / "ema-1ba") == {"config.json": {**CONFIG, "dtype": "float32"}, **FILES}
    averaged = load_file(tmp_path / "ema-1ba" / "model.safetensors")
    exact = oracle([make_tensors(1), make_tensors(2)], [0.5, 0.5])
    assert sorted(averaged) == sorted(exact)
    for name, tensor in averaged.items():
        torch.testing.assert_close(tensor, exact[name], rtol=2e-7, atol=2e-7, msg=name)
    with safe_open(tmp_path / "ema-1ba" / "model.safetensors", "pt") as file:
        assert {"README.md", *FILES} < set(json.loads(file.metadata()["ema_cli"])["files"])
    assert cli("average", "run", "--half-life", "1ba", "--force").code == 0


def test_bytes_are_read_from_every_protocol(tmp_path: Path):
    """torch.save writes bytes as a call that encodes text, other protocols as bytes: both are the same file."""
    for protocol in (2, 5):
        path = tmp_path / f"{protocol}.pt"
        tokenizer = {"x.model": {"file_extension": ".model", "content": b"\x00\xff\n"}}
        torch.save({"state": {"model": wrapped(1), "integrations": integrations(tokenizer=tokenizer)}}, path,
                   pickle_protocol=protocol)  # fmt: skip
        assert inner_files(path).read()["x.model"] == b"\x00\xff\n"


def test_a_single_file_keeps_the_names(cli: Cli, tmp_path: Path):
    """One file holds the checkpoint's own names, and nothing beside it is of the model."""
    write_run(tmp_path / "run", integrations())
    assert cli("average", "run", "--half-life", "1ba", "-o", "out.safetensors").code == 0
    assert sorted(load_file(tmp_path / "out.safetensors")) == sorted(wrapped(1))
    assert not (tmp_path / "config.json").exists()


def test_names_are_kept_when_asked(cli: Cli, tmp_path: Path):
    """--keep-prefix keeps them in a folder, too, which then has no configuration; the default is one file."""
    write_run(tmp_path / "run", integrations())
    assert cli("average", "run", "--half-life", "1ba", "--keep-prefix").out == "ema-1ba.safetensors\n"
    assert cli("average", "run", "--half-life", "1ba", "--keep-prefix", "-o", "out").code == 0
    assert contents(tmp_path / "out") == {}
    assert sorted(load_file(tmp_path / "out" / "model.safetensors")) == sorted(wrapped(1))


@pytest.mark.parametrize("prefix", ["module.model.", "model._orig_mod."])
def test_wrappers_around_the_wrapper_are_removed(cli: Cli, tmp_path: Path, prefix: str):
    """DDP and torch.compile put their prefixes around Composer's, or within."""
    write_run(tmp_path / "run", integrations(), prefix=prefix)
    assert cli("average", "run", "--half-life", "1ba").out == "ema-1ba\n"
    assert sorted(load_file(tmp_path / "ema-1ba" / "model.safetensors")) == sorted(make_tensors(1))


@pytest.mark.parametrize("kept", [{}, {"huggingface": {}}, integrations(config={}), integrations(config=[1]), None, 5])
def test_a_model_without_a_configuration_is_one_file(tmp_path: Path, kept: Any):
    """Composer's other models have none: their names may begin with model., and stay."""
    checkpoint = open_checkpoint(write(tmp_path / "ep0-ba1-rank0.pt", wrapped(1), kept))
    assert checkpoint.pretrained is None


def test_parts_beside_the_wrapped_model_keep_all_names(tmp_path: Path):
    """A module with more than the wrapped model would not load strictly: it is averaged as it is."""
    path = write(tmp_path / "ep0-ba1-rank0.pt", {**wrapped(1), "loss.scale": torch.ones(1)}, integrations())
    checkpoint = open_checkpoint(path)
    assert checkpoint.pretrained is None


def test_a_name_that_safetensors_keeps_for_itself_is_refused_without_the_wrapper(cli: Cli, tmp_path: Path):
    """In a folder that loads it would stand in the header where the metadata stand; in one file it may stay."""
    for batch in (1, 2):
        tensors = {**wrapped(batch), "model.__metadata__": torch.ones(1)}
        write(tmp_path / "run" / f"ep0-ba{batch}-rank0.pt", tensors, integrations(), batch)
    done = cli("average", "run", "--half-life", "1ba", "-o", "out")
    assert done.code == 3, done
    assert "'__metadata__', which safetensors keeps for itself" in done.err
    assert cli("average", "run", "--half-life", "1ba", "-o", "out.safetensors").code == 0


def test_the_class_is_named_as_transformers_names_it(tmp_path: Path):
    """A configuration that has not been saved with its model lacks its class, which Composer keeps beside it."""
    for kind, expected in (
        ("transformers.models.gpt2.modeling_gpt2.GPT2LMHeadModel", ["GPT2LMHeadModel"]),
        ("transformers.models.gpt2.modeling_gpt2.FSDPGPT2LMHeadModel", None),
        ("own.Model", None),
        (7, None),
    ):
        path = write(tmp_path / "ep0-ba1-rank0.pt", wrapped(1), integrations(kind=kind))  # type: ignore[arg-type]
        assert json.loads(inner_files(path).read()["config.json"]).get("architectures") == expected


def adapter(batch: int, rank: int = 2) -> dict[str, torch.Tensor]:
    """Return the A and B of an adapter, as Composer names them."""
    torch.manual_seed(batch)
    at = "model.base_model.model.layer.q_proj"
    return {
        f"{at}.lora_A.default.weight": torch.randn(rank, 4),
        f"{at}.lora_B.default.weight": torch.randn(4, rank),
        "model.base_model.model.embed.lora_embedding_A.default": torch.randn(rank, 4),
    }


def test_an_adapter_is_named_as_peft_names_it(cli: Cli, tmp_path: Path):
    """The weights of an adapter come with PEFT's configuration, under names without its adapter's."""
    for batch in (1, 2):
        write(tmp_path / "run" / f"ep0-ba{batch}-rank0.pt", adapter(batch), integrations(peft=ADAPTER), batch)
    done = cli("average", "run", "--half-life", "1ba")
    assert done.code == 0, done
    assert contents(tmp_path / "ema-1ba")["adapter_config.json"] == ADAPTER
    at = "base_model.model.layer.q_proj"
    expected = [f"{at}.lora_A.weight", f"{at}.lora_B.weight", "base_model.model.embed.lora_embedding_A"]
    assert sorted(load_file(tmp_path / "ema-1ba" / "adapter_model.safetensors")) == sorted(expected)
    card = (tmp_path / "ema-1ba" / "README.md").read_text()
    assert "base_model: some/base\nlibrary_name: peft\n" in card


def test_adapters_of_other_scales_are_refused(cli: Cli, tmp_path: Path):
    """What A and B mean is in PEFT's configuration, which must be one for all checkpoints."""
    for batch in (1, 2):
        kept = integrations(peft={**ADAPTER, "lora_alpha": batch})
        write(tmp_path / "run" / f"ep0-ba{batch}-rank0.pt", adapter(batch), kept, batch)
    done = cli("average", "run", "--half-life", "1ba")
    assert done.code == 4
    assert "lora_alpha" in done.err


def test_an_adapter_with_its_model_is_one_file(tmp_path: Path):
    """With the weights of the model beside it, PEFT would not load an adapter under these names."""
    path = write(tmp_path / "ep0-ba1-rank0.pt", {**adapter(1), "model.x": torch.ones(1)}, integrations(peft=ADAPTER))
    assert open_checkpoint(path).pretrained is None


LOOP: list[Any] = []
LOOP.append(LOOP)
DEEP: Any = []
for _ in range(150):
    DEEP = [DEEP]
BOMB: Any = ["0123456789" * 100]
for _ in range(8):
    BOMB = [BOMB] * 10


def file(extension: Any, content: Any) -> dict[str, Any]:
    """Return how Composer keeps one file."""
    return {"file_extension": extension, "content": content}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tokenizer", "says"),
    [
        ({"../../escape.json": file(".json", {})}, "escape.json"),
        ({"/tmp/escape.json": file(".json", {})}, "escape.json"),
        ({"a/b.json": file(".json", {})}, "a/b.json"),
        ({".hidden.json": file(".json", {})}, "hidden"),
        ({"a\nb.json": file(".json", {})}, "no tokenizer writes"),
        ({"x" * 300 + ".json": file(".json", {})}, "no tokenizer writes"),
        ({"config.json": file(".json", {})}, "no tokenizer writes"),
        ({"config": file(".json", {})}, "no tokenizer writes"),
        ({"model.safetensors.index.json": file(".json", {})}, "no tokenizer writes"),
        ({"ema-manifest.json": file(".json", {})}, "no tokenizer writes"),
        ({"vocab": file(".txt", ["a"]), "vocab.txt": file(".txt", ["b"])}, "two files called 'vocab.txt'"),
        ({"model.safetensors": file(".safetensors", b"")}, "not kept as Composer keeps one"),
        ({"x": file("", "x")}, "not kept as Composer keeps one"),
        ({"x": 5}, "not kept as Composer keeps one"),
        ({5: file(".json", {})}, "not kept as Composer keeps one"),
        ({"x.json": file([".json"], {})}, "not kept as Composer keeps one"),
        ({"x.json": file(".json", {1: 2})}, "a key that is no text"),
        ({"x.json": file(".json", {"a": torch.ones(2)})}, "not plain data"),
        ({"x.json": file(".json", {"a": b"bytes"})}, "not plain data"),
        ({"x.json": file(".json", LOOP)}, "not plain data, or is nested without end"),
        ({"x.json": file(".json", DEEP)}, "not plain data, or is nested without end"),
        ({"x.json": file(".json", BOMB)}, "too large"),
        ({"x.json": file(".json", 1 << 2000)}, "a number of 2001 bits"),
        ({"x.json": file(".json", "\ud800")}, "not valid text"),
        ({"x.txt": file(".txt", "text")}, "holds a str"),
        ({"x.txt": file(".txt", ["a", 1])}, "holds a list"),
        ({"x.py": file(".py", b"bytes")}, "holds a "),
        ({"x.jinja": file(".jinja", None)}, "holds a NoneType"),
        ({"x.model": file(".model", "text")}, "holds no bytes"),
        ({"x.model": file(".model", CheckpointError)}, "holds no bytes"),
    ],
)
def test_files_that_composer_never_keeps_are_refused(tmp_path: Path, tokenizer: Any, says: str):
    """Names that lead elsewhere or belong to others, endless and wrong content: an error that names the checkpoint."""
    path = write(tmp_path / "ep0-ba1-rank0.pt", wrapped(1), integrations(tokenizer=tokenizer))
    files = inner_files(path)
    with pytest.raises(CheckpointError, match="ep0-ba1-rank0") as raised:
        files.read()
    assert says in str(raised.value)
    assert raised.value.hint


def test_a_tokenizer_that_cannot_be_read_leaves_one_file(cli: Cli, tmp_path: Path):
    """The folder is refused before anything is written, with the way on: the weights alone."""
    write_run(tmp_path / "run", integrations(tokenizer={"../x.json": file(".json", {})}))
    done = cli("average", "run", "--half-life", "1ba")
    assert done.code == 3, done
    assert "-o release.safetensors" in done.err
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    assert cli("average", "run", "--half-life", "1ba", "-o", "release.safetensors").code == 0
