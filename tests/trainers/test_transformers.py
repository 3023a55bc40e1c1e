"""Runs that transformers' Trainer wrote here and now: averaged as they lie, loaded back as a user would."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ema_cli.writing.side_files import find_side_files
from tests.conftest import OWN_FILES, Cli
from tests.trainers.conftest import Tensors, assert_rounds, names, recurrence
from tests.trainers.transformers_run import STEPS, load_clean, saved, train

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("ignore")]

EPOCHS = [step / 16 for step in STEPS]  # 64 examples in batches of 4
TOKENS = [step * 4 * 8 for step in STEPS]  # 8 tokens each
TRAINER_FILES = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "trainer_state.json"}
SIDE_FILES = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 in float32, its embeddings tied."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=10, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return train(tmp_path_factory.mktemp("gpt2") / "out", config, torch.float32)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama in bfloat16, its embeddings apart."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=10, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=16, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return train(tmp_path_factory.mktemp("llama") / "out", config, torch.bfloat16)


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Path:
    """One of the runs, by the name that a test is parametrized with."""
    folder: Path = request.getfixturevalue(request.param)
    return folder


BOTH = pytest.mark.parametrize("run", ["gpt2", "llama"], indirect=True)


def assert_loads(folder: Path, dtype: torch.dtype, exact: Tensors) -> None:
    """Check that model and tokenizer load, that the model holds the average, and that it runs."""
    from transformers import AutoTokenizer

    model = load_clean(folder)
    held = model.state_dict()
    assert {tensor.dtype for tensor in held.values()} == {dtype}
    assert_rounds({name: held[name] for name in exact}, exact)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer("a h b")["input_ids"], tokenizer.chat_template) == ([2, 9, 3], "{{ messages }}")
    logits = model(**tokenizer("a h b", return_tensors="pt", return_token_type_ids=False)).logits
    assert logits.shape == (1, 3, 10)
    assert torch.isfinite(logits).all()


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file in a folder, by its path inside it."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@BOTH
def test_run_as_it_lies_averages_to_a_folder_that_loads(cli: Cli, run: Path, tmp_path: Path):
    """`average OUT --half-life 20ba`: a folder of that name with the average, the tokenizer and no training state."""
    before = contents(run)
    assert {path for path in TRAINER_FILES if f"checkpoint-35/{path}" in before} == TRAINER_FILES
    done = cli("average", run, "--half-life", "20ba")
    assert (done.code, done.out) == (0, "ema-20ba\n"), done
    assert names(tmp_path) == {"ema-20ba"}
    assert contents(run) == before
    written = tmp_path / "ema-20ba"
    assert names(written) == {"model.safetensors", *SIDE_FILES, *OWN_FILES}
    newest = run / "checkpoint-35"
    assert all((written / name).read_bytes() == (newest / name).read_bytes() for name in SIDE_FILES)
    exact = recurrence(saved(run), STEPS, 20)
    assert_rounds(load_file(written / "model.safetensors"), exact)
    stored = json.loads((newest / "config.json").read_text())["dtype"]
    assert_loads(written, getattr(torch, stored), exact)


def test_tied_embeddings_stay_tied(cli: Cli, gpt2: Path, tmp_path: Path):
    """The head is not in the file, as in the checkpoints, and is the embedding again in the loaded model."""
    assert cli("average", gpt2, "--half-life", "20ba").code == 0
    assert "lm_head.weight" not in load_file(tmp_path / "ema-20ba" / "model.safetensors")
    model = load_clean(tmp_path / "ema-20ba")
    assert model.lm_head.weight is model.transformer.wte.weight


@BOTH
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_asked_for(cli: Cli, run: Path, tmp_path: Path, dtype: str):
    """The weights are rounded once to --dtype, config.json says so and nothing else new, and the model loads in it."""
    assert cli("average", run, "--half-life", "20ba", "--dtype", dtype).code == 0
    written = tmp_path / "ema-20ba"
    config, stored = (json.loads((folder / "config.json").read_text()) for folder in (written, run / "checkpoint-35"))
    assert config == {**stored, "dtype": dtype}
    exact = recurrence(saved(run), STEPS, 20)
    tensors = load_file(written / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {getattr(torch, dtype)}
    assert_rounds(tensors, exact)
    assert_loads(written, getattr(torch, dtype), exact)


@pytest.mark.parametrize(
    ("law", "clocks", "half_life", "interval"),
    [
        (["--half-life", "1ep", "--update-interval", "0.5ep"], EPOCHS, 1, 0.5),
        (["--half-life", "1ep"], EPOCHS, 1, 1),
        (["--half-life", "500tok"], TOKENS, 500, 1),
        (["--half-life", "500tok", "--update-interval", "400tok"], TOKENS, 500, 400),
        (["--half-life", "7ba", "--update-interval", "15ba"], STEPS, 7, 15),
    ],
)
def test_clocks_of_every_unit(
    cli: Cli, gpt2: Path, tmp_path: Path, law: Sequence[str], clocks: Sequence[float], half_life: float, interval: float
):
    """Epochs, tokens and steps of trainer_state.json drive the law, updates without a checkpoint included."""
    assert cli("average", gpt2, *law).code == 0
    written = load_file(tmp_path / f"ema-{law[1]}" / "model.safetensors")
    assert_rounds(written, recurrence(saved(gpt2), clocks, half_life, interval))


@BOTH
def test_inspect_tells_clocks_and_where_they_come_from(cli: Cli, run: Path):
    """Steps, epochs and tokens, all from the sidecar; the model above the checkpoints is passed over."""
    done = cli("inspect", run, "--json")
    assert done.code == 0, done
    told = done.json["run"]
    assert [each["name"] for each in told["checkpoints"]] == [f"checkpoint-{step}" for step in STEPS]
    assert [each["clocks"] for each in told["checkpoints"]] == [
        {unit: {"value": value, "from": "sidecar"} for unit, value in (("ba", step), ("ep", epoch), ("tok", tokens))}
        for step, epoch, tokens in zip(STEPS, EPOCHS, TOKENS, strict=True)
    ]
    assert told["passed_over"] == [{"name": "(this folder)", "reason": "a model beside its own checkpoints"}]
    assert told["differences"] == []
    assert told["tensors"]["count"] == len(saved(run)[0])


def test_named_checkpoints_to_one_file(cli: Cli, gpt2: Path, tmp_path: Path):
    """Folders named in any order average by their clocks, to a file that says what transformers asks for."""
    done = cli(
        "average", gpt2 / "checkpoint-20", gpt2 / "checkpoint-10", "--half-life", "10ba", "-o", "one.safetensors"
    )
    assert (done.code, done.out) == (0, "one.safetensors\n"), done
    exact = recurrence(saved(gpt2)[:2], STEPS[:2], 10)
    assert_rounds(load_file(tmp_path / "one.safetensors"), exact)
    with safe_open(tmp_path / "one.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"


@pytest.fixture
def sharded(run: Path, tmp_path: Path) -> Path:
    """The run's checkpoints as large models are saved: in shards with an index."""
    from transformers import AutoModelForCausalLM

    for step in STEPS:
        source, folder = run / f"checkpoint-{step}", tmp_path / "sharded" / f"checkpoint-{step}"
        AutoModelForCausalLM.from_pretrained(source).save_pretrained(folder, max_shard_size="6KB")
        for name in ("trainer_state.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(source / name, folder)
    return tmp_path / "sharded"


@BOTH
def test_shards_stay_as_they_are(cli: Cli, run: Path, sharded: Path, tmp_path: Path):
    """The output has the newest checkpoint's shards and index, the values of the unsharded run, and loads."""
    assert cli("average", sharded, "--half-life", "20ba").code == 0
    written, newest = tmp_path / "ema-20ba", sharded / "checkpoint-35"
    shards = {path.name for path in newest.glob("*.safetensors")}
    assert len(shards) > 1
    assert names(written) == {*shards, "model.safetensors.index.json", *SIDE_FILES, *OWN_FILES}
    index, theirs = (json.loads((folder / "model.safetensors.index.json").read_text()) for folder in (written, newest))
    assert index == theirs
    tensors: dict[str, torch.Tensor] = {}
    for shard in shards:
        part = load_file(written / shard)
        assert {index["weight_map"][name] for name in part} == {shard}
        tensors.update(part)
    assert cli("average", run, "--half-life", "20ba", "-o", "whole").code == 0
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    assert sorted(tensors) == sorted(whole)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in tensors.items())
    assert_loads(written, next(iter(whole.values())).dtype, recurrence(saved(run), STEPS, 20))


@BOTH
def test_shards_of_a_size(cli: Cli, run: Path, tmp_path: Path):
    """--max-shard-size cuts a whole model in files of at most that many bytes, and the cut model loads."""
    whole, cut = ["average", run, "--half-life", "20ba"], ["--max-shard-size", "6KB"]
    assert cli(*whole, "-o", "whole").code == 0
    assert cli(*whole, *cut, "-o", "cut").code == 0
    one = load_file(tmp_path / "whole" / "model.safetensors")
    files = sorted((tmp_path / "cut").glob("*.safetensors"))
    assert len(files) > 1
    assert [path.name for path in files] == [
        f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)
    ]
    parts = [load_file(path) for path in files]
    sizes = [[tensor.nbytes for tensor in part.values()] for part in parts]
    assert all(sum(each) <= 6000 or len(each) == 1 for each in sizes)
    joined = {name: tensor for part in parts for name, tensor in part.items()}
    assert sorted(joined) == sorted(one)
    assert all(torch.equal(tensor, one[name]) for name, tensor in joined.items())
    assert_loads(tmp_path / "cut", next(iter(one.values())).dtype, recurrence(saved(run), STEPS, 20))


def test_shards_are_those_of_the_hub(gpt2: Path):
    """Given the same tensors in the same order, huggingface_hub cuts in the same places, at any size."""
    from huggingface_hub import split_state_dict_into_shards_factory

    from ema_cli.formats import open_checkpoint
    from ema_cli.formats.safetensors.writer import split_shards

    specs = open_checkpoint(gpt2 / "checkpoint-35").tensors.specs
    sizes = {spec.nbytes for spec in specs.values()}
    for most in (0, 1, *sizes, *(size - 1 for size in sizes), 5_000, 10_000, 10**9):
        theirs = split_state_dict_into_shards_factory(
            dict(specs),
            get_storage_size=lambda spec: spec.nbytes,
            get_storage_id=lambda spec: None,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=most,
        )
        assert split_shards(specs, most, "model") == theirs.tensor_to_filename


@BOTH
def test_shards_are_joined(cli: Cli, sharded: Path, tmp_path: Path):
    """A limit above all of it gives one file without an index, which loads."""
    assert cli("average", sharded, "--half-life", "20ba", "--max-shard-size", "5GB").code == 0
    assert names(tmp_path / "ema-20ba") == {"model.safetensors", *SIDE_FILES, *OWN_FILES}
    load_clean(tmp_path / "ema-20ba")


def test_processors_come_along(cli: Cli, gpt2: Path, tmp_path: Path):
    """An image processor and a feature extractor, saved with the model, are those that load from the average."""
    from transformers import AutoFeatureExtractor, AutoImageProcessor, CLIPImageProcessor, Wav2Vec2FeatureExtractor

    for part, auto in (
        (CLIPImageProcessor(crop_size={"height": 24, "width": 24}, do_convert_rgb=False), AutoImageProcessor),
        (Wav2Vec2FeatureExtractor(feature_size=1, sampling_rate=8000, padding_value=0.5), AutoFeatureExtractor),
    ):
        run = shutil.copytree(gpt2, tmp_path / f"run-{auto.__name__}")
        part.save_pretrained(run / "checkpoint-35")
        assert cli("average", run, "--half-life", "20ba", "-o", auto.__name__).code == 0
        assert (
            auto.from_pretrained(tmp_path / auto.__name__).to_dict()
            == auto.from_pretrained(run / "checkpoint-35").to_dict()
        )
        assert (tmp_path / auto.__name__ / "preprocessor_config.json").exists()
        load_clean(tmp_path / auto.__name__)


def test_the_hub_s_own_reader_understands_the_card(cli: Cli, gpt2: Path, tmp_path: Path):
    """huggingface_hub reads tags and library from the model card, and finds nothing to complain of."""
    from huggingface_hub import ModelCard

    assert cli("average", gpt2, "--half-life", "20ba").code == 0
    card = ModelCard.load(tmp_path / "ema-20ba" / "README.md")
    assert card.data.to_dict() == {"library_name": "transformers", "tags": ["ema", "weight-averaging"]}
    assert "| `checkpoint-35` | 35ba |" in card.text


def test_output_beside_the_checkpoints_is_not_averaged_again(cli: Cli, gpt2: Path, tmp_path: Path):
    """Written into the run's folder, an average is passed over by the next, which gives the same bytes."""
    run = shutil.copytree(gpt2, tmp_path / "run")
    assert cli("average", ".", "--half-life", "20ba", cwd=run).out == "ema-20ba\n"
    first = contents(run / "ema-20ba")
    assert cli("average", ".", "--half-life", "20ba", "--force", cwd=run).code == 0
    assert contents(run / "ema-20ba") == first
    passed = cli("inspect", "--json", cwd=run).json["run"]["passed_over"]
    assert {"name": "ema-20ba", "reason": "averaged by ema-cli"} in passed


def test_output_named_beside_checkpoints_is_refused_as_what_it_is(cli: Cli, gpt2: Path, tmp_path: Path):
    """An average named among the run's checkpoints is refused as an average, not for the clock it cannot have."""
    assert cli("average", gpt2, "--half-life", "20ba").code == 0
    done = cli("average", "ema-20ba", gpt2 / "checkpoint-10", "--half-life", "20ba", "-o", "again")
    assert done.code == 4
    assert "ema-20ba: is averaged already" in done.err
    assert names(tmp_path) == {"ema-20ba"}


def test_every_file_of_a_tokenizer_travels(tmp_path: Path):
    """Whatever any of the library's tokenizers calls its files: the names are those that its sources list."""
    found = {"tekken.json"}  # of Mistral's own tokenizers, which list none
    for source in Path(pytest.importorskip("transformers").__file__).parent.glob("models/*/tokenization_*.py"):
        for listed in re.findall(r"VOCAB_FILES_NAMES\s*=\s*{(.*?)}", source.read_text(), re.DOTALL):
            found |= set(re.findall(r':\s*"([^"]+)"', listed))
    assert len(found) > 20
    for name in found:
        (tmp_path / name).touch()
    assert set(find_side_files(tmp_path)) == found
