"""A model whose weights are not in the file is refused; an empty buffer beside real weights is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ema_cli.errors import CheckpointError
from ema_cli.runs.run import open_run
from tests.conftest import Cli

NOTHING = torch.zeros(0)
EMPTY: dict[str, dict[str, torch.Tensor]] = {
    "all of it": {"embed.weight": NOTHING, "mlp.weight": NOTHING},
    "matrices, beside norms that stay whole": {
        "embed.weight": NOTHING,
        "norm.weight": torch.ones(8),
        "mlp.weight": NOTHING,
        "mlp.bias": torch.ones(8),
    },
    "one, of another name": {"embedding": NOTHING, "experts.up": NOTHING, "norm": torch.ones(8)},
    "floats, beside a counter": {"bn.weight": NOTHING, "bn.num_batches_tracked": torch.tensor(3)},
    "shapes with a zero": {"a": torch.zeros(0, 4), "b": torch.zeros(4, 0)},
    "adapter": {"q.lora_A.weight": NOTHING, "q.lora_B.weight": NOTHING},
}
WHOLE: dict[str, dict[str, torch.Tensor]] = {
    "buffer": {"w": torch.ones(2), "cache": NOTHING},
    "matrix without rows": {"a.weight": torch.zeros(0, 4), "b.weight": torch.ones(4, 4)},
    "e3nn's, with weights that others hand in": {
        "tp.weight": NOTHING,
        "tp.output_mask": torch.ones(4),
        "a.linear.weight": torch.ones(4),
        "a.linear.bias": NOTHING,
        "a.linear.output_mask": torch.ones(4),
    },
    "integers": {"w": torch.ones(2), "index": torch.zeros(0, dtype=torch.int64)},
    "buffers": {"a.weight": torch.ones(2, 2), "b.weight": torch.ones(2), "k": NOTHING, "v": NOTHING},
}


@pytest.mark.parametrize("label", EMPTY)
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_model_without_its_weights_is_refused(tmp_path: Path, label: str, suffix: str):
    """Whatever lies beside them: the reason and the way out are told, with exit code 3."""
    for step in (1, 2):
        path = tmp_path / f"step-{step}.{suffix}"
        save_file(EMPTY[label], path) if suffix == "safetensors" else torch.save({"model": EMPTY[label]}, path)
    with pytest.raises(CheckpointError) as caught:
        open_run([tmp_path])
    assert caught.value.subject == tmp_path / f"step-1.{suffix}"
    if label != "shapes with a zero":
        assert "stage3_gather_16bit_weights_on_model_save" in str(caught.value.hint)
        assert "global_stepN" in str(caught.value.hint), "DeepSpeed's own folder needs no converter"


@pytest.mark.parametrize("label", WHOLE)
def test_an_empty_buffer_beside_real_weights_is_no_matter(cli: Cli, tmp_path: Path, label: str):
    """It is averaged, or copied, with the rest."""
    for step in (1, 2):
        save_file({name: tensor * step for name, tensor in WHOLE[label].items()}, tmp_path / f"step-{step}.safetensors")
    assert cli("average", ".", "--profile", "uniform", "-o", "out.safetensors").code == 0
    written = load_file(tmp_path / "out.safetensors")
    assert {name: tensor.shape for name, tensor in written.items()} == {
        name: tensor.shape for name, tensor in WHOLE[label].items()
    }
    for name, tensor in WHOLE[label].items():
        torch.testing.assert_close(
            written[name], (tensor * 1.5).to(tensor.dtype) if tensor.is_floating_point() else tensor
        )


def test_the_converter_beside_it_is_named(cli: Cli, tmp_path: Path):
    """A folder of the Hugging Face Trainer with DeepSpeed's converter in it: the hint is the command."""
    for step in (100, 200):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        save_file(EMPTY["all of it"], folder / "model.safetensors")
        (folder / "config.json").write_text("{}")
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "epoch": 1}))
        (folder / "zero_to_fp32.py").touch()
    for command in (("average",), ("inspect", "--strict")):
        done = cli(*command, "run", "--half-life", "100ba")
        assert (done.code, "without a single element" in done.err) == (3, True)
        assert "python run/checkpoint-100/zero_to_fp32.py run/checkpoint-100 OUTPUT" in done.err
    assert cli("average", "run/checkpoint-100", "run/checkpoint-200", "--half-life", "100ba").code == 3
