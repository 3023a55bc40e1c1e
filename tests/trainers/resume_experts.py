"""Train with DeepSpeed's automatic experts, or go on from an average in its universal format.

`python -m tests.trainers.resume_experts FOLDER STAGE train`, in each process, fills FOLDER/out. With `universal` in
place of `train` it loads `averaged/`, and compares the optimizer's float32 weights with those of `exact.safetensors`,
of experts with its own; also after a step of length 0. Then it takes one more.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tests.trainers.deepspeed_engine import configuration, deepspeed_on_cpu, masters, train_or_go_on, zero
from tests.trainers.ranks import leave

RANKS = 2


def make_engine(stage: int, *, universal: bool) -> Any:
    """Return DeepSpeed's engine."""
    sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]  # not needed, and slow
    import deepspeed
    from deepspeed.module_inject.auto_ep_presets import base
    from transformers import MixtralConfig, MixtralForCausalLM

    # It changes what newer versions of transformers have otherwise: how they record what routers give.
    base._retarget_transformers_output_recorders_for_modules = lambda *_, **__: None

    class Net(MixtralForCausalLM):  # type: ignore[misc]
        """A model that gives a tensor."""

        def forward(self, batch: torch.Tensor) -> Any:
            """Return the output."""
            return super().forward(input_ids=batch).logits

    torch.manual_seed(3)
    model = Net(
        MixtralConfig(
            vocab_size=16, hidden_size=8, intermediate_size=6, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=16,
        )
    )  # fmt: skip
    config = configuration(
        stage,
        "bfloat16",
        **zero(stage),
        train_micro_batch_size_per_gpu=2,
        optimizer={"type": "AdamW", "params": {"lr": 0.01, "torch_adam": True}},
        expert_parallel={
            "enabled": True, "autoep_size": RANKS, "preset_model": "mixtral", "use_grouped_mm": False
        },
        checkpoint={"load_universal": universal},
    )  # fmt: skip
    parameters = list(model.parameters())
    return deepspeed.initialize(model=model, config=config, model_parameters=parameters, dist_init_required=False)[0]


def main(folder: Path, stage: int, what: str) -> None:
    """Train, or load, compare and go on."""
    with deepspeed_on_cpu() as rank:
        engine = make_engine(stage, universal=what == "universal")

        def batch(number: int) -> torch.Tensor:
            """Return the batch of a step."""
            return torch.randint(16, (2, 8), generator=torch.Generator().manual_seed(RANKS * number + rank))

        def check(exact: Mapping[str, torch.Tensor], *, buffers: bool) -> None:
            """Compare what this process has with its part of the exact average."""
            assert not buffers
            found = masters(engine.module)
            assert sum(".experts." in name for name in found) == 3
            for name, tensor in found.items():
                own = exact[name].chunk(RANKS)[rank] if ".experts." in name else exact[name].view_as(tensor)
                torch.testing.assert_close(tensor, own, rtol=1e-6, atol=1e-7, msg=name)

        train_or_go_on(engine, folder, what, batch, check)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    leave()
