"""Runs for the law and the clocks: regular, irregular, twins, links, copies, gaps, half-written, of no clock."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from .containers import write_shards
from .tensors import Tensors, converted, model, save, save_tensors, save_text

CONFIG = {"_name_or_path": "some/base", "dtype": "float32", "model_type": "tiny", "text_config": {"dtype": "float32"}}
SIDE_FILES = {
    "generation_config.json": "{}\n",
    "tokenizer.json": '{"model": {"vocab": {"a": 1}}}\n',
    "tokenizer_config.json": '{"model_max_length": 16}\n',
    "vocab.txt": "[PAD]\na\n",
    "chat_template.jinja": "{{ messages }}\n",
    "modeling_own.py": "raise SystemExit\n",
    "LICENSE": "free\n",
    "additional_chat_templates/tools.jinja": "{{ tools }}\n",
}


def hf_checkpoint(folder: Path, step: int, tensors: Tensors, *, epoch_length: int = 400, shards: int = 1) -> None:
    """Write a folder as the Hugging Face Trainer leaves it, with what it needs to resume."""
    if shards > 1:
        write_shards(folder, tensors, "model", "safetensors", shards)
    else:
        save_tensors(folder / "model.safetensors", tensors, format="pt")
    state = {"epoch": step / epoch_length, "global_step": step, "log_history": [{"loss": float("nan")}]}
    save_text(folder / "trainer_state.json", {**state, "num_input_tokens_seen": 512 * step})
    save_text(folder / "config.json", CONFIG)
    for name, text in SIDE_FILES.items():
        save_text(folder / name, text)
    for name in ("optimizer.pt", "rng_state.pth", "scheduler.pt", "training_args.bin"):
        save(folder / name, {"never": "opened"})


def hf(run: Path) -> None:
    """Write ten checkpoints of the Trainer's, 100 batches apart, and the final model."""
    for step in range(100, 1001, 100):
        hf_checkpoint(run / f"checkpoint-{step}", step, model(step))
    save_tensors(run / "model.safetensors", model(1001))


def shards(run: Path) -> None:
    """Write a model in bfloat16, in two shards, with a README of its own."""
    for step in (10, 20, 30):
        hf_checkpoint(run / f"checkpoint-{step}", step, converted(model(step), torch.bfloat16), shards=2)
        save_text(run / f"checkpoint-{step}" / "README.md", "# mine\n")


def loop(run: Path, steps: Sequence[int] = (10, 20, 30, 40, 50, 60)) -> None:
    """Write what a training loop of one's own saves, with epochs of 20 batches."""
    for step in steps:
        save(run / f"step-{step}.pt", {"model": model(step), "step": step, "epoch": step // 20, "lr": 0.1})


def files(steps: Sequence[int], name: str = "step-{}.safetensors") -> Callable[[Path], None]:
    """Return a maker of files with no clock but that in their names."""

    def make(run: Path) -> None:
        for step in steps:
            save_tensors(run / name.format(step), model(step))

    return make


def epochs(run: Path) -> None:
    """Write files whose epochs are counted from 0."""
    for epoch in range(5):
        save(run / f"epoch_{epoch}.pt", {"state_dict": model(epoch), "epoch": epoch})


def untrained(run: Path) -> None:
    """Write a run that begins with the untrained model."""
    for step in (0, 5, 10, 15):
        save(run / f"step-{step}.pt", {"model": model(step), "global_step": step, "epoch": step / 10})


def samples(run: Path) -> None:
    """Write files with samples and tokens in their names."""
    for step in (1, 2, 3, 4):
        save_tensors(run / f"samples-{64 * step}-tokens-{4096 * step}.safetensors", model(step))


def no_clock(run: Path) -> None:
    """Write files whose names give an order and no clock."""
    for number in (1, 2, 9, 10):
        save_tensors(run / f"model_{number}.safetensors", model(number))


def no_clock_copies(run: Path) -> None:
    """Write the same, with a copy of the last and a best one."""
    no_clock(run)
    save_tensors(run / "model_best.safetensors", model(9))
    save_tensors(run / "last.safetensors", model(10))


def twins(run: Path, *, equal: bool = True) -> None:
    """Write two files of each clock, with equal tensors or others."""
    for step in (10, 20, 30):
        save(run / f"step-{step}.pt", {"model": model(step), "step": step})
        again = step if equal else step + 1
        save(run / f"again-{step}.pt", {"model": model(again), "step": step})


def other_twins(run: Path) -> None:
    """Write two files of each clock, which differ."""
    twins(run, equal=False)


def aliases(run: Path) -> None:
    """Write links, hard links, a file that names another, copies, a final model without a clock."""
    loop(run, (10, 20, 30))
    (run / "latest.pt").symlink_to("step-30.pt")
    (run / "last.pt").hardlink_to(run / "step-30.pt")
    (run / "best.pt").symlink_to("step-20.pt")
    (run / "newest.pt").write_text("step-30.pt")
    (run / "gone.pt").symlink_to("step-99.pt")
    save(run / "final.pt", {"model": model(30)})
    (run / "linked").symlink_to(".")
    (run / "outside").symlink_to("../loop")
    save_tensors(run / "model_ema.safetensors", model(5))
    save_tensors(run / "step-20_ema" / "model.safetensors", model(5))


def half_written(run: Path) -> None:
    """Write a run in which a writer died now and then."""
    loop(run, (10, 20, 30, 40))
    whole = (run / "step-40.pt").read_bytes()
    (run / "step-40.pt").write_bytes(whole[: len(whole) // 2])
    (run / "step-50.pt.tmp").write_bytes(whole[:100])
    (run / "step-60.pt").write_bytes(b"")
    (run / "tmp-step-70").mkdir()
    (run / "step-80").mkdir()
    save(run / "step-90.pt", {"lr": 1.0, "notes": ["no weights"]})
    os.mkfifo(run / "step-95.pt")


def hf_half_written(run: Path) -> None:
    """Write checkpoints of the Trainer's of which one has no state yet, and one no index."""
    for step in (100, 200, 300, 400):
        hf_checkpoint(run / f"checkpoint-{step}", step, model(step), shards=2)
    (run / "checkpoint-300" / "trainer_state.json").unlink()
    (run / "checkpoint-400" / "model.safetensors.index.json").unlink()


def contradicting(run: Path) -> None:
    """Write clocks that are in one order by batches and in another by epochs."""
    for step, epoch in ((10, 3), (20, 2), (30, 4)):
        save(run / f"step-{step}.pt", {"model": model(step), "step": step, "epoch": epoch})


def some_clocks(run: Path) -> None:
    """Write files of which one records no clock."""
    loop(run, (10, 20))
    save(run / "weights7.pt", {"model": model(7)})


def two_runs(run: Path) -> None:
    """Write two runs into one folder."""
    loop(run / "a", (10, 20))
    loop(run / "b", (10, 20, 30))


def each_in_a_folder(run: Path) -> None:
    """Write a folder for each checkpoint, under names that say nothing."""
    for step, name in ((10, "one"), (20, "two")):
        save(run / name / "weights.pt", {"model": model(step), "step": step})


def equal(run: Path) -> None:
    """Write checkpoints that are equal to the bit, negative zeros and denormals among them."""
    for step in (1, 2, 3):
        tensors = {"zeros": torch.tensor([-0.0, 0.0, 1e-45, 0.1]), "halves": torch.tensor([0.1, -0.0]).half()}
        save_tensors(run / f"step-{step}.safetensors", tensors)


def not_finite(run: Path) -> None:
    """Write NaN and infinity into two of three checkpoints."""
    for step in (1, 2, 3):
        tensors = model(step)
        if step == 2:
            tensors["head.weight"][3, 1] = float("nan")
        if step == 3:
            tensors["layers.1.norm.weight"][2] = float("inf")
        save(run / f"step-{step}.pt", {"model": tensors, "step": step})


def too_large(run: Path) -> None:
    """Write floats that a shorter type has no numbers for."""
    for step in (1, 2, 3):
        save_tensors(run / f"step-{step}.safetensors", {"big": torch.tensor([1.0, 1e5 * step, 3e38])})


def mixed(run: Path) -> None:
    """Write checkpoints in different float types."""
    for step, dtype in ((1, torch.float32), (2, torch.bfloat16), (3, torch.float16)):
        save_tensors(run / f"step-{step}.safetensors", converted(model(step), dtype))


def other_models(run: Path) -> None:
    """Write checkpoints of which one has another shape, lacks a tensor and has one more."""
    files((1, 3))(run)
    tensors = model(2)
    del tensors["head.weight"]
    save_tensors(run / "step-2.safetensors", {**tensors, "embed.weight": torch.zeros(3, 4), "more": torch.zeros(1)})


def large(run: Path) -> None:
    """Write tensors that are read in many blocks, in order and out of it."""
    for step in (1, 2, 3):
        random = torch.Generator().manual_seed(step)
        tensors = {
            "in.order": torch.randn(400, 1000, generator=random),
            "halves": torch.randn(300, 1001, generator=random).bfloat16(),
            "transposed": torch.randn(700, 500, generator=random).t(),
            "sliced": torch.randn(900, 600, generator=random)[::3, ::2],
            "numbers": torch.randint(0, 9, (70_001,), generator=random),
        }
        save(run / f"step-{step}.pt", {"model": tensors, "step": step})


def large_safetensors(run: Path) -> None:
    """Write some megabytes for shards of several sizes."""
    for step in (1, 2, 3):
        random = torch.Generator().manual_seed(step)
        tensors = {f"layers.{layer}.weight": torch.randn(100, 999, generator=random) for layer in range(6)}
        save_tensors(run / f"checkpoint-{step}" / "model.safetensors", tensors, format="pt")


def many(run: Path) -> None:
    """Write more checkpoints than any table shows."""
    for step in range(1, 121):
        save_tensors(run / f"checkpoint-{step}" / "model.safetensors", {"weight": model(step)["embed.weight"]})


def many_layers(run: Path) -> None:
    """Write more layers than a page shows, under names that have little in common."""
    for step in (1, 2, 3):
        random = torch.Generator().manual_seed(step)
        names = [f"blocks.{number}.mlp.weight" for number in range(120)] + [f"part{number}.w" for number in range(9)]
        save_tensors(run / f"step-{step}.safetensors", {name: torch.randn(3, generator=random) for name in names})


def experts(run: Path) -> None:
    """Write layers of many experts each."""
    for step in (1, 2, 3):
        random = torch.Generator().manual_seed(step)
        names = [f"layers.{layer}.experts.{number}.w" for layer in range(3) for number in range(40)]
        save_tensors(run / f"step-{step}.safetensors", {name: torch.randn(3, generator=random) for name in names})


MAKERS: dict[str, Callable[[Path], object]] = {
    "hf": hf,
    "shards": shards,
    "loop": loop,
    "regular": files(range(100, 901, 100)),
    "irregular": files((10, 20, 30, 70, 80, 85, 200)),
    "dense": files(range(1, 25)),
    "one": files((7,)),
    "two": files((10, 20)),
    "epochs": epochs,
    "untrained": untrained,
    "samples": samples,
    "no-clock": no_clock,
    "no-clock-copies": no_clock_copies,
    "twins": twins,
    "other-twins": other_twins,
    "aliases": aliases,
    "half-written": half_written,
    "hf-half-written": hf_half_written,
    "contradicting": contradicting,
    "some-clocks": some_clocks,
    "two-runs": two_runs,
    "each-in-a-folder": each_in_a_folder,
    "equal": equal,
    "not-finite": not_finite,
    "too-large": too_large,
    "mixed": mixed,
    "other-models": other_models,
    "many": many,
    "many-layers": many_layers,
    "experts": experts,
    "large": large,
    "large-safetensors": large_safetensors,
    "empty": lambda run: run.mkdir(parents=True),
}
