"""Float32 weights of an optimizer that are not those of the model: refused, or said, wherever they are taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ema_cli.errors import CheckpointError
from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import ReadOptions
from tests.conftest import Cli
from tests.formats.dcp_folders import Pieces
from tests.formats.zero.make import Saved

MASTERS = ReadOptions(masters=True)
STATES = "mp_rank_00_model_states.pt"
MEGATRON = "optimizer.state.param."


def saved(step: int, dtype: torch.dtype = torch.bfloat16) -> Saved:
    """Return a save of stage 2, of two ranks."""
    random = torch.Generator().manual_seed(step)
    weights = {f"{name}.weight": torch.randn(40, 50, generator=random) for name in "ab"}
    return Saved(2, 2, [weights], buffers={"mean": torch.ones(3)}, step=step, dtype=dtype)


def megatron(folder: Path, step: int, of: int | None = None, further: str = "") -> Path:
    """Write a folder of Megatron's whose float32 weights are those of another step, or are there twice."""
    pieces = Pieces(folder)
    for name, tensor in saved(step).masters.items():
        pieces.add(name, tensor.bfloat16())
        if name != "mean":
            master = saved(of or step).masters[name]
            pieces.add(f"{MEGATRON}{name}", master)
            if further:
                pieces.add(f"{further}{name}", master)
    pieces.add_item("common_state/shard_0_1", {"iteration": step})
    pieces.write()
    return folder


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_model_and_optimizer_of_two_saves_are_refused(cli: Cli, tmp_path: Path, dtype: torch.dtype) -> None:
    """File and parameter are named, by inspect and by average; without --masters nothing is compared."""
    for step in (2, 4):
        saved(step, dtype).write(tmp_path / f"run/global_step{step}")
    open_checkpoint(tmp_path / "run/global_step4", MASTERS)
    torch.save(saved(2, dtype).model_states(0), tmp_path / "run/global_step4" / STATES)
    with pytest.raises(CheckpointError, match=rf"'a.weight' is not its float32 weight.* of what {STATES} has"):
        open_checkpoint(tmp_path / "run/global_step4", MASTERS)
    for command, code in (("inspect", 0), ("average", 3)):  # which lists it
        done = cli(command, "run", "--half-life", "2ba", "--masters")
        told = " ".join((done.out + done.err).split())
        assert (done.code, "'a.weight' is not its float32 weight" in told) == (code, True), done
    for command in ("inspect", "average"):
        assert cli(command, "run", "--half-life", "2ba", "--ignore-clocks", "--spacing", "2ba").code == 0


def test_another_way_of_rounding_is_said(cli: Cli, tmp_path: Path) -> None:
    """One step off may be stochastic rounding: a warning, which --strict takes for an error."""
    folder = saved(4).write(tmp_path / "run/global_step4")
    states = torch.load(folder / STATES)
    states["module"]["b.weight"].view(torch.int16)[0, 7] ^= 1
    torch.save(states, folder / STATES)
    saved(2).write(tmp_path / "run/global_step2")
    average = ("average", "run", "--half-life", "2ba", "--masters")
    done = cli(*average)
    assert done.code == 0, done
    assert f"'b.weight' in {STATES} is not its float32 weight rounded to nearest" in " ".join(done.err.split())
    assert cli(*average, "--force", "--strict").code == 6


def test_zero_3_in_a_trainer_s_folder_is_compared_with_the_trainer_s_model(cli: Cli, tmp_path: Path) -> None:
    """What the Trainer gathered into its own file has to be the same model."""
    from safetensors.torch import save_file

    for step in (2, 4):
        three = saved(step)
        three.stage = 3
        three.write(tmp_path / f"run/checkpoint-{step}/global_step{step}")
        around = tmp_path / f"run/checkpoint-{step}"
        (around / "config.json").write_text("{}")
        save_file(saved(2).model, around / "model.safetensors", {"format": "pt"})
    done = cli("average", "run", "--half-life", "2ba", "--masters", "--name-clock", "ba", "-o", "out")
    told = " ".join(done.err.split())
    assert (done.code, "'a.weight' is not its float32 weight" in told, "model.safetensors" in told) == (3, True, True)


def test_megatron_s_are_compared_too(tmp_path: Path) -> None:
    """Each piece of the model's, in the folder of torch.distributed.checkpoint."""
    open_checkpoint(megatron(tmp_path / "one", 2), MASTERS)
    with pytest.raises(CheckpointError, match=r"'a\.weight' is not its float32 weight"):
        open_checkpoint(megatron(tmp_path / "other", 2, of=4), MASTERS)


FOUR_BITS = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])  # the sizes of float4_e2m1


def to_four_bits(values: torch.Tensor) -> torch.Tensor:
    """Return the nearest numbers of float4_e2m1."""
    nearest = FOUR_BITS[(values.abs()[..., None] - FOUR_BITS).abs().argmin(-1)]
    return nearest.copysign(values)


def in_8_bits(dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what rounds to an 8-bit type."""
    return lambda values: values.to(dtype).float()


# By the size of the blocks that have a scale: the largest number of a type, what rounds to it, whether scales are any.
QUANTIZED: dict[str, tuple[int, float, Callable[[torch.Tensor], torch.Tensor], bool]] = {
    "e4m3, one scale": (1920, 448.0, in_8_bits(torch.float8_e4m3fn), True),
    "e5m2, one scale": (1920, 57344.0, in_8_bits(torch.float8_e5m2), True),
    "MXFP8": (32, 448.0, in_8_bits(torch.float8_e4m3fn), False),
    "e4m3 in blocks of 128": (128, 448.0, in_8_bits(torch.float8_e4m3fn), True),
    "MXFP4": (32, 6.0, to_four_bits, False),
    "NVFP4": (16, 6.0, to_four_bits, True),
}


@pytest.mark.parametrize("kind", QUANTIZED)
def test_weights_that_are_trained_in_8_bits_or_fewer_are_said(cli: Cli, tmp_path: Path, kind: str) -> None:
    """Megatron saves them widened, and their float32 weights beside them: a warning, and the average is of these."""
    block, largest, rounded, is_any = QUANTIZED[kind]
    masters = {step: saved(step).masters["a.weight"].flatten()[:1920].reshape(-1, block) for step in (2, 4)}
    for step, master in masters.items():
        pieces, scale = Pieces(tmp_path / f"run/iter_{step:07}"), largest / master.abs().amax(1, keepdim=True)
        scale = scale if is_any else torch.exp2(scale.log2().floor())
        pieces.add("a.weight", (rounded(master * scale) / scale).bfloat16())
        pieces.add(f"{MEGATRON}a.weight", master)
        pieces.add_item("common_state/shard_0_1", {"iteration": step})
        pieces.write()
    done = cli("average", "run", "--profile", "uniform", "--masters", "-o", "out.pt")
    told = " ".join(done.err.split())
    assert (done.code, "to one of few numbers: the model is trained in 8 bits or fewer" in told) == (0, True), done
    expected = (masters[2].double() + masters[4].double()).float() / 2
    averaged = torch.load(tmp_path / "out.pt")["a.weight"]
    assert torch.allclose(averaged.flatten(), expected.flatten(), rtol=0, atol=1e-6)
    assert cli("average", "run", "--profile", "uniform", "--masters", "--force", "-o", "out.pt", "--strict").code == 6


@pytest.mark.parametrize("further", ["optimizer.state.fp32_param.", "chained_1.optimizer.state.param."])
def test_two_float32_weights_of_one_parameter_are_refused(cli: Cli, tmp_path: Path, further: str) -> None:
    """Nothing says which the trainer takes: both are named, and what to do; nor are they offered."""
    for step in (2, 4):
        megatron(tmp_path / f"run/iter_{step:07}", step, further=further)
    for command in (("inspect", "run", "--masters"), ("average", "run", "--profile", "uniform", "--masters")):
        done = cli(*command)
        told = " ".join((done.out + done.err).split())
        assert done.code == 3, done
        assert f"has two float32 weights, '{MEGATRON}a.weight' and '{further}a.weight'" in told
    done = cli("average", "run", "--profile", "uniform", "-o", "out", "--like-input")
    assert (done.code, "--drop optimizer" in done.err, "--masters" in done.err) == (5, True, False), done
    assert cli("average", "run", "--profile", "uniform", "-o", "out.safetensors").code == 0
