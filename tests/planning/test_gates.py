"""What is demanded of an average before it is made."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from ema_cli.errors import UsageError
from ema_cli.planning.gates import Gates, read_keys
from tests.conftest import make_tensors, write_hf_run, write_torch_run
from tests.inprocess import InProcess

NAMES = ["layer.bias", "layer.weight", "norm.num_batches_tracked"]
COMMANDS = pytest.mark.parametrize("command", [["inspect"], ["average", "--dry-run"], ["average"]])


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> InProcess:
    """The command line, in a folder with a run of three, whose weights of a half-life of 1000ba are 1/4, 1/4, 1/2."""
    monkeypatch.chdir(tmp_path)
    write_hf_run(tmp_path / "ckpts", [1000, 2000, 3000])
    (tmp_path / "keys").write_text("\n".join(NAMES))
    return InProcess(tmp_path, capsys)


def demand(run: InProcess, command: list[str], *gates: object, law: str = "1000ba") -> list[str]:
    """Return what did not hold; check the exit code, and that nothing was written."""
    before = {path.name for path in run.folder.iterdir()}
    code, told = run.json(*command, "ckpts", "--half-life", law, *gates)
    failed = "error" in told
    assert code == (6 if failed else 0), told
    assert {path.name for path in run.folder.iterdir()} - before == (
        set() if failed or command != ["average"] else {f"ema-{law}"}
    )
    return told["error"]["message"].split("; ") if failed else []


@pytest.mark.slow
@COMMANDS
def test_a_gate_holds_at_its_bound_and_fails_beyond_it(run: InProcess, command: list[str]):
    """The bound itself holds; one more, or a share less, does not, and all that does not hold is told."""
    held = ["--min-count", "3", "--max-share", "0.5", "--strict", "--expect-keys", "keys"]
    assert demand(run, command, *held) == []
    shutil.rmtree(run.folder / "ema-1000ba", ignore_errors=True)
    (run.folder / "keys").write_text("layer.bias\nother")
    assert demand(run, command, "--min-count", 4, "--max-share", 0.49, "--expect-keys", "keys") == [
        "--min-count 4: 3 checkpoints enter the average of 1000ba",
        "--max-share 0.49: checkpoint-3000 holds 50.00% of the average of 1000ba",
        "--expect-keys: missing 'other'",
        "--expect-keys: unexpected 'layer.weight', 'norm.num_batches_tracked'",
    ]


@COMMANDS
def test_strict_is_for_no_warning(run: InProcess, command: list[str]):
    """What is passed over, and a half-life that means nothing, are told as they are warned of."""
    (run.folder / "ckpts/checkpoint-3000/model.safetensors").write_bytes(b"")
    found = demand(run, command, "--strict", law="100ba")
    assert len(found) == 2
    assert all(each.startswith("--strict: ") for each in found)
    assert "checkpoint-3000" in found[0]
    assert "is passed over" in found[0]
    assert "checkpoint-2000 holds 99.9% of the average" in found[1]


@COMMANDS
def test_a_checkpoint_without_weight_does_not_count_for_a_gate(run: InProcess, command: list[str]):
    """A half-life of 0ba has one checkpoint in its average, whatever its plan lists."""
    assert demand(run, command, "--min-count", 2, law="0ba") == [
        "--min-count 2: 1 checkpoint enters the average of 0ba"
    ]


def test_each_of_several_averages_must_hold(run: InProcess):
    """The message says of which half-life it is; nothing is written for the other either."""
    code, told = run.json("average", "ckpts", "--half-life", "1000ba", "--half-life", "10ba", "--max-share", "0.6")
    assert (code, told["error"]["message"]) == (
        6,
        "--max-share 0.6: checkpoint-3000 holds 100.00% of the average of 10ba",
    )
    assert not list(run.folder.glob("ema-*"))


def test_gates_come_before_any_tensor_is_read(run: InProcess):
    """A run with NaN in it fails at the gate, and without one at the NaN."""
    write_torch_run(run.folder / "files", [1, 2])
    torch.save({"model": {**make_tensors(3), "layer.bias": torch.full((4,), math.nan)}, "step": 3}, "files/step-3.pt")
    told = [run.json("average", "files", "--half-life", "1ba", *gate)[1] for gate in (["--min-count", "4"], [])]
    messages = [each["error"]["message"] for each in told]
    assert [("--min-count" in each, "layer.bias" in each) for each in messages] == [
        (True, False),
        (False, True),
    ]


def test_inspect_shows_the_run_before_it_fails(run: InProcess):
    """Who reads the log sees why: the table is on stdout, the error on stderr."""
    code, out = run("inspect", "ckpts", "--half-life", "1000ba", "--min-count", "4")
    assert code == 6
    assert "checkpoint-2000" in out
    assert run.err.startswith("error: --min-count 4: ")


@pytest.mark.parametrize("gate", [["--min-count", "1"], ["--max-share", "0.5"]])
def test_inspect_asks_of_which_average(run: InProcess, gate: list[str]):
    """Without a law there is no weight; names and warnings there are."""
    assert run("inspect", "ckpts", *gate)[0] == 2
    assert run("inspect", "ckpts", "--strict", "--expect-keys", "keys")[0] == 0


def test_keys_are_those_that_are_written(run: InProcess):
    """Of an average the names in the output: without the prefixes of wrappers."""
    tensors = {f"_orig_mod.{name}": tensor for name, tensor in make_tensors(1).items()}
    for step in (1, 2):
        Path("wrapped").mkdir(exist_ok=True)
        torch.save({"model": tensors, "step": step}, f"wrapped/step-{step}.pt")
    for flags, code in (([], 0), (["--keep-prefix"], 6)):
        for command in (["inspect"], ["average", "--dry-run"]):
            told = run.json(*command, "wrapped", "--half-life", "1ba", "--expect-keys", "keys", *flags)
            assert told[0] == code, told


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(NAMES),
        "  layer.bias\r\n\nlayer.weight\n norm.num_batches_tracked \n\n",
        json.dumps(NAMES),
        json.dumps(dict.fromkeys(NAMES, 1)),
        json.dumps({"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(NAMES, "model.safetensors")}),
        json.dumps({"__metadata__": {}, **{name: {} for name in NAMES}}),
    ],
)
def test_lists_of_names(tmp_path: Path, text: str):
    """Lines, a list, an object's keys, an index of shards, a header of safetensors."""
    (tmp_path / "keys").write_text(text)
    assert read_keys(tmp_path / "keys") == set(NAMES)


def test_names_of_a_manifest(run: InProcess):
    """The manifest of an average lists the tensors that the next one must have."""
    assert run("average", "ckpts", "--half-life", "1000ba", "-o", "first")[0] == 0
    assert read_keys(run.folder / "first" / "ema-manifest.json") == set(NAMES)


def test_names_as_another_system_writes_them(tmp_path: Path):
    """A mark at the beginning and other ends of lines are no part of a name."""
    (tmp_path / "keys").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(NAMES).encode())
    assert read_keys(tmp_path / "keys") == set(NAMES)


@pytest.mark.parametrize("content", [None, b"", b" \n", b"[]", b"{}", b"\xff\xfe\x00"])
def test_files_that_list_nothing(tmp_path: Path, content: bytes | None):
    """None there, empty, or no text: a usage error that names the file."""
    if content is not None:
        (tmp_path / "keys").write_bytes(content)
    with pytest.raises(UsageError, match=r"expect_keys=: .*keys: "):
        read_keys(tmp_path / "keys")


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        (f"{'ab' * 32}  model.safetensors\n", f"its line 1 is '{'ab' * 30}...'"),
        ("layer.bias\n\nnorm.weight F32 [8]\n", "its line 3 is 'norm.weight F32 [8]'"),
        ("{\n layer.bias: 1\n}\n", "its line 2 is 'layer.bias: 1'"),
        ('[{"name": "layer.bias"}]', "is JSON, and no list or object of names"),
        ('{"weight_map": [["layer.bias", 1]]}', "is JSON, and no list or object of names"),
    ],
)
def test_files_that_list_something_else(tmp_path: Path, text: str, fact: str):
    """Sums, a table, a program, other JSON: their lines were taken for names that are missing."""
    (tmp_path / "keys").write_text(text)
    with pytest.raises(UsageError) as raised:
        read_keys(tmp_path / "keys")
    assert fact in raised.value.fact


def test_a_name_may_begin_as_json_does(tmp_path: Path):
    """As those of trees that JAX writes; one with a space comes from JSON alone."""
    (tmp_path / "keys").write_text("['params']['kernel']\n['params']['bias']\n")
    assert read_keys(tmp_path / "keys") == {"['params']['kernel']", "['params']['bias']"}
    (tmp_path / "keys").write_text('["a name"]')
    assert read_keys(tmp_path / "keys") == {"a name"}


def test_many_names_are_cut():
    """The first five of each kind, and how many more."""
    problem = Gates(expect_keys=frozenset(f"a{number}" for number in range(9))).problem([], [], ["b"])
    assert str(problem) == "expect_keys=: missing 'a0', 'a1', 'a2', 'a3', 'a4' and 4 more; expect_keys=: unexpected 'b'"


@pytest.mark.parametrize("gates", [{"min_count": 0}, {"min_count": -1}, {"max_share": 0}, {"max_share": 1.1}])
def test_values_that_make_no_sense(gates: dict[str, float]):
    """No count below 1, no share that is none."""
    with pytest.raises(UsageError):
        Gates(**gates)


def test_a_share_that_is_no_number():
    """NaN compares with nothing: it would let everything pass."""
    with pytest.raises(UsageError):
        Gates(max_share=math.nan)


def test_strict_and_what_it_forbids(run: InProcess):
    """--allow-non-finite warns of what it lets pass: it contradicts --strict."""
    assert run("average", "ckpts", "--half-life", "1000ba", "--strict", "--allow-non-finite")[0] == 2
