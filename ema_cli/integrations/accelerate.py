"""Save the averages of a sharded model (FSDP2) in a training with Accelerate.

In one process and in DDP, `accelerator.register_for_checkpointing(ema)` is enough. But Accelerate saves registered
objects from the main process alone, which has only one part of a sharded model.
"""

from __future__ import annotations

from accelerate import PartialState

from ema_cli.integrations.gathering import gather
from ema_cli.online.ema import EMA
from ema_cli.online.state import StateDict


class Gathered:
    """An EMA in a form that Accelerate can save: sharded tensors are gathered for saving, and cut again when loaded.

    accelerator.register_for_checkpointing(Gathered(ema))
    """

    def __init__(self, ema: EMA) -> None:
        self.ema = ema

    def state_dict(self) -> StateDict:
        """Return the whole state in the processes that save it. Every process must call this, as `save_state` does."""
        return gather(self.ema.state_dict(), keep=PartialState().is_local_main_process)

    def load_state_dict(self, state: StateDict) -> None:
        """Continue from a state of `state_dict`, with any number of processes."""
        self.ema.load_state_dict(state)
