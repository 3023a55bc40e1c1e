"""Go on from averages with Composer, from a file and from a folder of shards.

`python -m tests.trainers.load_composer FOLDER`, in each process of the training. FOLDER holds averages, each with the
exact weights beside it in a `.safetensors` of its name. Each is compared with what training begins with, after
Composer loaded it and before the first step; then one batch more is trained.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.trainers.ranks import gather, leave
from tests.trainers.write_composer import BATCH, EPOCH_LENGTH, EPOCHS, let_composer_load, train


def main(folder: Path) -> None:
    """Load, compare and train, one average after the other."""
    from composer import Callback
    from composer.utils import dist

    class Watch(Callback):  # type: ignore[misc]
        """Keeps the weights with which training begins, and the number of batches before that."""

        def fit_start(self, state: Any, logger: Any) -> None:
            self.begun = weights(state.model)
            self.batch = state.timestamp.batch.value

    def weights(model: Any) -> dict[str, torch.Tensor]:
        # Composer wraps the model of several processes in DDP.
        return {name.removeprefix("module."): each for name, each in gather(model.state_dict()).items()}

    dist.initialize_dist("cpu")
    last = EPOCHS * EPOCH_LENGTH
    for kind, options in (("raw", {}), ("sharded", {"parallelism_config": {"fsdp": {"state_dict_type": "sharded"}}})):
        saved, watch = folder / f"{kind}.pt", Watch()
        saved = saved if saved.exists() else folder / kind
        on = {"load_path": str(saved), "callbacks": [watch], "max_duration": f"{last + 1}ba", **options}
        trainer = train(folder / "on" / kind, **on)
        exact = load_file(folder / f"{kind}.safetensors")
        assert (watch.batch, watch.begun.keys()) == (last, exact.keys())
        for name, tensor in watch.begun.items():
            torch.testing.assert_close(tensor, exact[name].to(tensor.dtype), rtol=1e-6, atol=3e-7, msg=name)
        assert trainer.state.timestamp.batch.value == last + 1
        assert trainer.state.timestamp.sample.value == (last + 1) * BATCH * dist.get_world_size()
        assert not torch.equal(weights(trainer.state.model)["net.0.weight"], watch.begun["net.0.weight"])


if __name__ == "__main__":
    let_composer_load()
    main(Path(sys.argv[1]))
    leave()
