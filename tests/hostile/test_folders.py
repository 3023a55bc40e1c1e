"""Folders of Hugging Face, PEFT, DeepSpeed and Diffusers: settings that never end, files that must never be opened."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hostile.conftest import Case, Harness, Kind, in_turn, parameters
from tests.hostile.make import (
    ESCAPES,
    HEADER,
    SHOWN,
    WEIGHTS,
    call,
    data,
    good_safetensors,
    mapping,
    number,
    safetensors,
    saved,
    text,
    torch_zip,
    whole,
)
from tests.hostile.programs import CREATE, ENDLESS, IDLE, MODULE, PROGRAMS, endless

STATE, ADAPTER, DS_MODEL = "trainer_state.json", "adapter_config.json", "mp_rank_00_model_states.pt"
NEVER_OPENED = (
    "training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "rng_state.pth", "rng_state_0.pth",
    "random_states_0.pkl", "scaler.pt", "sampler.bin", "common.pt", "meta.pt", "config.py", "modeling_x.py",
        "__init__.py",
    "conftest.py", "sitecustomize.py", "pickle.py", "global_step3.pkl",
)  # fmt: skip


def good_trainer(path: Path, step: int) -> None:
    """Write a folder of the Trainer's."""
    path.mkdir()
    good_safetensors(path / "model.safetensors", step)
    (path / STATE).write_text(json.dumps({"global_step": step, "epoch": step / 4}))


def good_adapter(path: Path, step: int) -> None:
    """Write a folder of PEFT's."""
    path.mkdir()
    good_safetensors(path / "adapter_model.safetensors", step)
    (path / ADAPTER).write_text(json.dumps({"peft_type": "LORA", "r": 4, "target_modules": ["q", "v"]}))


def good_deepspeed(path: Path, step: int) -> None:
    """Write a folder of DeepSpeed's."""
    path.mkdir()
    root = whole(mapping({"module": mapping(WEIGHTS), "global_steps": number(step)}))
    (path / DS_MODEL).write_bytes(torch_zip(root, data(step)))


def good_pipeline(path: Path, step: int) -> None:
    """Write a folder of a pipeline, with one component."""
    (path / "unet").mkdir(parents=True)
    good_safetensors(path / "unet" / "diffusion_pytorch_model.safetensors", step)
    (path / "unet" / "config.json").write_text("{}")


TRAINER = Kind("checkpoint-{}", good_trainer)
PEFT = Kind("checkpoint-{}", good_adapter)
DEEPSPEED = Kind("global_step{}", good_deepspeed)
PIPELINE = Kind("checkpoint-{}", good_pipeline)


def changed(kind: Kind, label: str, change: Callable[[Path], object], says: str = "", **more: object) -> Case:
    """Return a case of a good folder that was changed; an error unless nothing is to be said."""

    def write(path: Path, _canary: Path) -> None:
        kind.good(path, 3)
        change(path)

    return Case(write, says, label=label, **{"code": 3 if says else 0, **more})  # type: ignore[arg-type]


def with_file(kind: Kind, put_at: str, label: str, content: bytes, says: str = "", **more: object) -> Case:
    """Return a case of a file in a good folder."""
    return changed(kind, label, lambda path: (path / put_at).write_bytes(content), says, **{"file": put_at, **more})


def put(file: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Return a change that puts something else in place of a file."""

    def change(path: Path) -> None:
        (path / file).unlink(missing_ok=True)
        make(path / file)

    return change


def to(target: str) -> Callable[[Path], None]:
    """Return what makes a link."""
    return lambda path: path.symlink_to(target)


def in_itself(path: Path) -> None:
    """Link a file to itself."""
    path.symlink_to(path.name)


def planted_everywhere(path: Path, canary: Path) -> None:
    """Put programs into every file beside the weights that a trainer might open."""
    good_trainer(path, 3)
    program = whole(PROGRAMS["REDUCE"](canary))
    for file in NEVER_OPENED:
        code = f"from {MODULE} import create\ncreate({str(canary)!r})\n".encode()
        (path / file).write_bytes(code if file.endswith(".py") else program)


def planted(label: str, where: str) -> Case:
    """Return a case of a program in DeepSpeed's file: beside the model, or in its place."""

    def write(path: Path, canary: Path) -> None:
        value = PROGRAMS[label](canary)
        root = {"module": mapping(WEIGHTS), "global_steps": number(3)}
        root = {**root, "client_state": value} if where == "beside" else {**root, "module": value}
        path.mkdir()
        (path / DS_MODEL).write_bytes(torch_zip(whole(mapping(root))))
        (path / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(whole(value))

    fine = where == "beside"
    return Case(
        write, "" if fine else "pickled object", file=DS_MODEL, code=0 if fine else 3, label=f"{label}, {where}"
    )


def long_state(unit: bytes, count: int) -> bytes:
    """Return a state with a log that is long."""
    return b'{"global_step":3,"epoch":0.75,"log_history":[' + (unit + b",") * (count - 1) + unit + b"]}"


NOT_JSON = "not valid JSON"
STATES = [
    with_file(TRAINER, STATE, "nested", b'{"x":' + b"[" * 500_000 + b"]" * 500_000 + b"}", "too deeply"),
    with_file(TRAINER, STATE, "a duplicate clock", b'{"global_step":3,"global_step":9}', "'global_step' stands twice"),
    with_file(TRAINER, STATE, "a number of 5000 digits", b'{"global_step":' + b"9" * 5000 + b"}", NOT_JSON),
    with_file(TRAINER, STATE, "an exponent of 9 digits", b'{"global_step":3,"epoch":1e999999999}', "out of range"),
    with_file(TRAINER, STATE, "a long decimal", b'{"global_step":3,"epoch":0.' + b"1" * 100_000 + b"}", "out of range"),
    with_file(TRAINER, STATE, "not UTF-8", b'{"global_step":3,"x":"\xff"}', NOT_JSON),
    with_file(TRAINER, STATE, "half-written", b'{"global_step":3', NOT_JSON, passed=True),
    with_file(TRAINER, STATE, "a key that steers", json.dumps({"x": 1}).encode()[:-1] + b',"x":2}', "'x' stands twice"),
    with_file(TRAINER, STATE, "nine million lists", long_state(b"[]", 9_000_000), "more than"),
    with_file(TRAINER, STATE, "a long log", long_state(b'{"loss":0.1234567,"epoch":0.1}', 100_000)),
    with_file(TRAINER, STATE, "three million decimals", long_state(b"0.1234567", 3_000_000), "", seconds=60,
              peak=7 << 28, full=True),
    changed(TRAINER, "a state of 300 MB", lambda path: os.truncate(path / STATE, 300 << 20), "too many", file=STATE),
    changed(TRAINER, "a FIFO for the state", put(STATE, os.mkfifo), "not a regular file", file=STATE),
    changed(TRAINER, "a device for the state", put(STATE, to("/dev/zero")), "not a regular file", file=STATE),
    changed(TRAINER, "a state that links to itself", put(STATE, in_itself), "cannot be opened", file=STATE),
    changed(TRAINER, "a FIFO for the model", put("model.safetensors", os.mkfifo), "not a regular file"),
    changed(TRAINER, "a FIFO beside it", put("optimizer.pt", os.mkfifo)),
    changed(TRAINER, "a device beside it", put("training_args.bin", to("/dev/zero"))),
    changed(TRAINER, "a link up", put("up", to(".."))),
    with_file(TRAINER, "model.safetensors", "a Git LFS pointer",
        b"version https://git-lfs.github.com/spec/v1\n" + bytes(90),
              "Git LFS pointer"),
    with_file(TRAINER, "model.safetensors", "a header of 2^60", (1 << 60).to_bytes(8, "little"),
        "no safetensors header"),
    Case(planted_everywhere, code=0),
]  # fmt: skip


def lora(rank: bytes) -> bytes:
    """Return the configuration of the good adapter, but for its rank."""
    return b'{"peft_type":"LORA","r":' + rank + b',"target_modules":["q","v"]}'


ADAPTERS = [
    with_file(PEFT, ADAPTER, "nested", b'{"r":' + b"[" * 500_000 + b"]" * 500_000 + b"}", "too deeply"),
    with_file(PEFT, ADAPTER, "nested 300 deep", lora(b"[" * 300 + b"]" * 300), "its r is", code=4,
        file=None,
              inspects=0),
    with_file(PEFT, ADAPTER, "a duplicate key", b'{"r":1,"r":2}', "'r' stands twice"),
    with_file(PEFT, ADAPTER, "another rank", b'{"peft_type":"LORA","r":8,"target_modules":["q","v"]}', "its r is",
        code=4,
              file=None, inspects=0),
    with_file(PEFT, ADAPTER, "settings that steer", lora(json.dumps(ESCAPES, ensure_ascii=False).replace("\n", "")
              .replace("\r", "").replace("\x1b", "").replace("\x07", "").encode()), r"\u202e", code=4, file=None,
                  inspects=0),
    with_file(PEFT, ADAPTER, "a setting of a megabyte", lora(json.dumps("a" * 1_000_000).encode()), "its r is", code=4,
              file=None, inspects=0),
    changed(PEFT, "17 MB", lambda path: os.truncate(path / ADAPTER, 17 << 20), "too many", file=ADAPTER),
    changed(PEFT, "a FIFO", put(ADAPTER, os.mkfifo), "not a regular file", file=ADAPTER),
    changed(PEFT, "a device", put(ADAPTER, to("/dev/zero")), "not a regular file", file=ADAPTER),
]  # fmt: skip
DEEPSPEED_CASES = [
    *in_turn(
        (planted(label, "beside") for label in PROGRAMS),
        (planted(label, "instead") for label in PROGRAMS if "key" not in label and "default" not in label
         and "nested" not in label),
    ),
    *(with_file(DEEPSPEED, DS_MODEL, label, torch_zip(whole(mapping({"module": mapping(WEIGHTS),
        "global_steps": number(3),
        "client": endless(label)})))) for label in ENDLESS),
    with_file(DEEPSPEED, DS_MODEL, "cut short", torch_zip(saved())[:-30], "cut short", passed=True),
    with_file(DEEPSPEED, DS_MODEL, "a class that steers", torch_zip(whole(mapping({"module": text("a") + text(ESCAPES)
              + b"\x93)R", "global_steps": number(3)}))), SHOWN),
    with_file(DEEPSPEED, "zero_pp_rank_0_mp_rank_00_model_states.pt", "ZeRO-3", whole(call(CREATE, IDLE)),
              "stage 3", file=None),
    changed(DEEPSPEED, "a FIFO", put(DS_MODEL, os.mkfifo), "not a regular file", file=DS_MODEL),
    changed(DEEPSPEED, "a device", put(DS_MODEL, to("/dev/zero")), "not a regular file", file=DS_MODEL),
    changed(DEEPSPEED, "a folder", put(DS_MODEL, Path.mkdir), "not a regular file", file=DS_MODEL),
    with_file(DEEPSPEED, "../latest", "a newest that steers", (ESCAPES + "global_step2").encode(), SHOWN, file=None,
              passed=True),
    changed(DEEPSPEED, "a FIFO for the newest", put("../latest", os.mkfifo)),
    changed(DEEPSPEED, "a gigabyte for the newest", put("../latest", lambda path: os.truncate(
        os.open(path, os.O_CREAT | os.O_WRONLY), 1 << 30))),
]  # fmt: skip
UNET = "unet/diffusion_pytorch_model.safetensors"
PIPELINES = [
    changed(PIPELINE, "a FIFO for the model", put(UNET, os.mkfifo), "not a regular file", file=UNET),
    changed(PIPELINE, "a FIFO for the configuration", put("unet/config.json", os.mkfifo)),
    with_file(PIPELINE, "unet/config.json", "nested", b"[" * 500_000 + b"]" * 500_000, "too deeply", passed=True),
    with_file(PIPELINE, UNET, "a tensor of 2^60", safetensors({**HEADER, "x": {"dtype": "F32", "shape": [1 << 60],
              "data_offsets": [36, 36]}}), "'x'"),
    changed(PIPELINE, "a component in itself", put("vae", to("."))),
    with_file(PIPELINE, "unet_ema", "a file for the averages", b"x"),
]  # fmt: skip


@pytest.mark.parametrize("case", parameters(STATES))
def test_folders_of_the_trainer(case: Case, harness: Harness) -> None:
    """A state that lies or never ends is one clear error; nothing that holds no weights is opened."""
    harness.check(TRAINER, case)


@pytest.mark.parametrize("case", parameters(ADAPTERS))
def test_hostile_adapter_configurations(case: Case, harness: Harness) -> None:
    """A configuration of an adapter is read strictly, and shown without steering the terminal."""
    harness.check(PEFT, case)


@pytest.mark.parametrize("case", parameters(DEEPSPEED_CASES))
def test_hostile_deepspeed_files(case: Case, harness: Harness) -> None:
    """No program in DeepSpeed's files runs; the file that names the newest is read in bounds."""
    harness.check(DEEPSPEED, case)


@pytest.mark.parametrize("case", parameters(PIPELINES))
def test_hostile_components_of_pipelines(case: Case, harness: Harness) -> None:
    """A component of a pipeline is read as strictly as any folder."""
    harness.check(PIPELINE, case)
