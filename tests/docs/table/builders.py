"""Small runs in the layout of each trainer, built without its library: three checkpoints, 1, 2 and 3 steps old."""

from __future__ import annotations

import argparse
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch.distributed.tensor import Shard

from tests.formats.arrays.flax_files import packed
from tests.formats.dcp_folders import Box
from tests.formats.pieces.make import halves, write_pieces
from tests.formats.ranks.flattened import save_flat
from tests.formats.ranks.saves import Cut, save_ranks
from tests.formats.zero.make import Saved

Tensors = dict[str, torch.Tensor]
STEPS = (1, 2, 3)
LAW = ("--half-life", "1ba")


class Net(torch.nn.Sequential):
    """A model with parameters, a persistent and a transient buffer, and a counter."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        super().__init__(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
        self.register_buffer("transient", torch.ones(2), persistent=False)


def state_dict(step: int) -> Tensors:
    """Return the weights that every builder stores for `step`."""
    return {name: tensor.detach().clone() for name, tensor in Net(step).state_dict().items()}


class Case:
    """A run on disk: what to pass to the program beside it, and under which names and dtype the average comes out.

    Of several `folders`, each has a model; "" is the checkpoint's own. `extra` is copied from the newest checkpoint.
    """

    def __init__(
        self,
        *arguments: str,
        prefix: str = "",
        dtype: torch.dtype | None = None,
        folders: Sequence[str] = ("",),
        extra: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self.arguments = arguments
        self.extra = extra or {}
        self.prefixes = [f"{folder}/" if folder else prefix for folder in folders]
        self.dtype = dtype

    def expected(self, weights: Sequence[float] = (0.25, 0.25, 0.5)) -> Tensors:
        """Return the average in float64, rounded once; integers as in the newest."""
        stored = [{name: self._stored(tensor) for name, tensor in state_dict(step).items()} for step in STEPS]
        average = {}
        for name, newest in stored[-1].items():
            total = sum(w * tensors[name].double() for w, tensors in zip(weights, stored, strict=True))
            mean = total.to(newest.dtype) if newest.is_floating_point() else newest
            average.update({prefix + name: mean for prefix in self.prefixes})
        return {**average, **self.extra}

    def _stored(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.dtype) if self.dtype and tensor.is_floating_point() else tensor


def save(path: Path, value: object, *, legacy: bool = False) -> None:
    """Save with torch, making the folder first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)


def each(name: str, wrap: Callable[[int], object], case: Case | None = None, *, legacy: bool = False) -> Any:
    """Return a builder that saves one file for each step under `name`, in which {} is the step."""

    def build(run: Path) -> Case:
        for step in STEPS:
            save(run / name.format(step), wrap(step), legacy=legacy)
        return case or Case()

    return build


def npz(name: str, save_arrays: Callable[..., None]) -> Callable[[Path], Case]:
    """Return a builder of an archive of numpy's for each step, with a counter among the arrays."""

    def build(run: Path) -> Case:
        run.mkdir()
        for step in STEPS:
            arrays = {tensor_name: tensor.numpy() for tensor_name, tensor in state_dict(step).items()}
            save_arrays(run / name.format(step), **arrays, **{"opt/step": step}, step=step)
        return Case(extra={"step": torch.tensor(STEPS[-1])})

    return build


def stable_baselines(run: Path) -> Case:
    """Write archives of stable-baselines3."""
    run.mkdir()
    for step in STEPS:
        with zipfile.ZipFile(run / f"rl_model_{9 * step}_steps.zip", "w") as archive:
            archive.writestr("data", json.dumps({"num_timesteps": step, "_n_updates": 3}))
            with archive.open("policy.pth", "w") as file:
                torch.save(state_dict(step), file)
    return Case("--half-life", "1sp")


def nemo(run: Path) -> Case:
    """Write archives of NeMo."""
    run.mkdir()
    for step in STEPS:
        save(run.parent / "packed" / "model_weights.ckpt", state_dict(step))
        with tarfile.open(run / f"step={step}.nemo", "w:") as archive:
            archive.add(run.parent / "packed", arcname=".")
    return Case()


def paddle(run: Path) -> Case:
    """Write what Paddle pickles of a model."""
    for step in STEPS:
        (run / f"checkpoint-{step}").mkdir(parents=True)
        arrays = {name: tensor.numpy() for name, tensor in state_dict(step).items()}
        names = {"StructuredToParameterName@@": dict.fromkeys(arrays, "linear_0.w_0")}
        (run / f"checkpoint-{step}" / "model_state.pdparams").write_bytes(pickle.dumps({**arrays, **names}, 4))
    return Case()


def flax(run: Path) -> Case:
    """Write states of trainings as Flax does: a tree by the parts of names, and averages and an optimizer beside it."""
    run.mkdir()
    for step in STEPS:
        tree: dict[str, Any] = {}
        for name, tensor in state_dict(step).items():
            *around, last = name.split(".")
            inner = tree
            for key in around:
                inner = inner.setdefault(key, {})
            inner[last] = tensor.numpy()
        state = {"step": step, "params": tree, "opt_state": {"0": {"mu": tree}}, "ema_params": tree}
        (run / f"state{step}.msgpack").write_bytes(packed(state, chunk=32))
    return Case()


def orbax(run: Path) -> Case:
    """Write checkpoints of Orbax's, with an optimizer beside the model."""
    pytest.importorskip("tensorstore")
    from tests.formats.arrays.orbax_files import write_step

    for step in STEPS:
        arrays = {("params", *name.split(".")): tensor.numpy() for name, tensor in state_dict(step).items()}
        write_step(run / f"{step}", {**arrays, ("opt_state", "0", "mu"): state_dict(9)["0.weight"].numpy()})
    return Case()


def ranks(name: str) -> Callable[[Path], Case]:
    """Return a builder of two files for each step, each with half of the tensors; `name` has the step and the rank."""

    def build(run: Path) -> Case:
        for step in STEPS:
            tensors = list(state_dict(step).items())
            for rank, part in enumerate((tensors[:3], tensors[3:])):
                save(run / name.format(step, rank), {"model": dict(part), "step": step})
        return Case()

    return build


def safetensors_files(run: Path) -> Case:
    """Write one safetensors file for each step."""
    run.mkdir()
    for step in STEPS:
        save_file(state_dict(step), run / f"step-{step}.safetensors")
    return Case()


def write_shards(folder: Path, step: int, base: str, suffix: str) -> None:
    """Write a model in two shards with an index, as Hugging Face does."""
    folder.mkdir(parents=True)
    tensors = state_dict(step)
    weight_map = {}
    for number, names in enumerate((list(tensors)[:3], list(tensors)[3:]), 1):
        shard = f"{base}-{number:05}-of-00002.{suffix}"
        part = {name: tensors[name] for name in names}
        save_file(part, folder / shard) if suffix == "safetensors" else torch.save(part, folder / shard)
        weight_map.update(dict.fromkeys(names, shard))
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{base}.{suffix}.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")


def hub_cache(run: Path) -> Case:
    """Write shards as the hub's cache keeps them: links to files elsewhere, named by their contents."""
    for step in STEPS:
        write_shards(run.parent / "blobs" / str(step), step, "model", "safetensors")
        (run / f"step-{step}").mkdir(parents=True)
        for path in (run.parent / "blobs" / str(step)).iterdir():
            (run / f"step-{step}" / path.name).symlink_to(path)
    return Case()


def rank_shards(run: Path) -> Case:
    """Write what each of two ranks saves of a model, cut along the first dimension."""
    for step in STEPS:
        tensors = state_dict(step)
        write_pieces(run / f"step-{step}", {name: (tensor, _halves(tensor)) for name, tensor in tensors.items()})
    return Case()


def _halves(tensor: torch.Tensor) -> list[Box]:
    return halves(tensor, 0) if tensor.dim() else [((), ())]


def bin_shards(run: Path) -> Case:
    """Write pickled shards with their index."""
    for step in STEPS:
        write_shards(run / f"checkpoint-{step}", step, "pytorch_model", "bin")
    return Case()


def hf_folder(folder: Path, step: int, state: Mapping[str, object] | None) -> None:
    """Write a folder with a model and, if there is one, the Trainer's state."""
    folder.mkdir(parents=True)
    save_file(state_dict(step), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text("{}")
    torch.save({"never": "opened"}, folder / "optimizer.bin")
    if state:
        (folder / "trainer_state.json").write_text(json.dumps(state))


def trainer(run: Path) -> Case:
    """Write what the Hugging Face Trainer leaves, the final model beside the checkpoints included."""
    for step in STEPS:
        hf_folder(run / f"checkpoint-{step}", step, {"global_step": step, "epoch": step / 10})
    save_file(state_dict(9), run / "model.safetensors")
    return Case()


def accelerate(run: Path) -> Case:
    """Write what Accelerate's save_state leaves: a counter in the name, and no clock."""
    for step in STEPS:
        hf_folder(run / f"checkpoint_{step - 1}", step, None)
        (run / f"checkpoint_{step - 1}" / "random_states_0.pkl").write_bytes(b"never opened")
    return Case("--spacing", "1ba")


def distributed(
    name: str, wrap: Callable[[int], dict[str, Any]], mark: Callable[[Path, int], None] | None = None
) -> Any:
    """Return a builder that saves with torch.distributed.checkpoint, from one process."""

    def build(run: Path) -> Case:
        for step in STEPS:
            folder = run / name.format(step)
            dcp.save(wrap(step), checkpoint_id=folder, no_dist=True)
            if mark:
                mark(folder, step)
        return Case()

    return build


def lightning_meta(folder: Path, step: int) -> None:
    """Write what Lightning keeps beside the shards."""
    torch.save({"epoch": 0, "global_step": step, "pytorch-lightning_version": "2.6.6", "loops": {}}, folder / "meta.pt")


def olmo_mark(folder: Path, _step: int) -> None:
    """Write what OLMo-core writes last."""
    (folder.parent / ".metadata.json").write_text("{}")


def timm(run: Path) -> Case:
    """Write timm's files: epochs from 0, hard links, one for recovery in the middle of an epoch."""
    for step in STEPS:
        saved = {"epoch": step - 1, "arch": "net", "version": 2, "args": argparse.Namespace(lr=1.0)}
        save(run / f"checkpoint-{step - 1}.pth.tar", {**saved, "state_dict": state_dict(step)})
    (run / "last.pth.tar").hardlink_to(run / "checkpoint-2.pth.tar")
    save(run / "recovery-3-50.pth.tar", {**saved, "epoch": 3, "state_dict": state_dict(9)})
    return Case("--half-life", "1ep")


def fairseq(step: int) -> dict[str, Any]:
    """Return what fairseq saves at the end of an epoch."""
    return {
        "args": None,
        "model": state_dict(step),
        "optimizer_history": [{"num_updates": step}],
        "extra_state": {"train_iterator": {"epoch": step + 1, "iterations_in_epoch": 0}},
        "last_optimizer_state": {"state": {}},
    }


def opennmt(step: int) -> dict[str, Any]:
    """Return what OpenNMT-py saves: the generator apart from the rest."""
    tensors = state_dict(step)
    generator = {name.removeprefix("1."): tensors.pop(name) for name in list(tensors) if name.startswith("1.")}
    opt = argparse.Namespace(average_decay=0)
    return {"model": tensors, "generator": generator, "opt": opt, "optim": {"training_step": step + 1}, "vocab": {}}


def opennmt_run(run: Path) -> Case:
    """Write OpenNMT-py's files; the generator's names begin with its own."""
    each("model_step_{}.pt", opennmt)(run)

    class Joined(Case):
        def expected(self, weights: Sequence[float] = (0.25, 0.25, 0.5)) -> Tensors:
            return {
                f"generator.{name.removeprefix('1.')}" if name.startswith("1.") else name: tensor
                for name, tensor in super().expected(weights).items()
            }

    return Joined()


def espnet(run: Path) -> Case:
    """Write espnet's files: bare state dicts, a link to the best, an average of its own."""
    each("{}epoch.pth", state_dict)(run)
    (run / "valid.acc.best.pth").symlink_to("3epoch.pth")
    save(run / "valid.acc.ave_10best.pth", state_dict(9))
    save(run / "checkpoint.pth", {"model": state_dict(3), "reporter": {"epoch": 3}})
    return Case("--half-life", "1ep")


def wenet(run: Path) -> Case:
    """Write wenet's files: the clock in a .yaml beside each, epochs from 0."""
    for step in STEPS:
        save(run / f"{step - 1}.pt", state_dict(step))
        (run / f"{step - 1}.yaml").write_text(f"cv_loss: 1.0\nepoch: {step - 1}\nlr: 0.001\nstep: {step}\n")
    save(run / "avg_3.pt", state_dict(9))
    return Case()


def diffusers(run: Path) -> Case:
    """Write a training checkpoint of Diffusers: two models and averages of one."""
    for step in STEPS:
        for component, seed in (("unet", step), ("unet_ema", 9), ("text_encoder", 8)):
            folder = run / f"checkpoint-{step}" / component
            folder.mkdir(parents=True)
            base = "model" if component == "text_encoder" else "diffusion_pytorch_model"
            save_file(state_dict(seed), folder / f"{base}.safetensors")
            config = {"optimization_step": step} if component == "unet_ema" else {}
            (folder / "config.json").write_text(json.dumps(config))
    return Case("--component", "unet")


def sentence_transformers(run: Path) -> Case:
    """Write a model with modules of which two have weights, in folders of their own."""
    folders = ["", "1_Pooling", "2_Dense", "3_Dense"]
    for step in STEPS:
        folder = run / f"checkpoint-{step}"
        for name in folders:
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / "config.json").write_text("{}")
            if name != "1_Pooling":
                save_file(state_dict(step), folder / name / "model.safetensors")
        (folder / "modules.json").write_text(json.dumps([{"idx": i, "path": name} for i, name in enumerate(folders)]))
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "epoch": 1}))
    return Case(folders=["", "2_Dense", "3_Dense"])


def value_head(run: Path) -> Case:
    """Write a model with a value head in a file of its own, as LLaMA-Factory does."""
    for step in STEPS:
        folder = run / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        tensors = state_dict(step)
        head = {name: tensors.pop(name) for name in list(tensors)[:2]}
        save_file(tensors, folder / "model.safetensors")
        save_file(head, folder / "value_head.safetensors")
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "epoch": 1}))
    return Case()


def speechbrain(run: Path) -> Case:
    """Write what SpeechBrain's Checkpointer leaves."""
    for step in STEPS:
        folder = run / f"CKPT+2026-11-29+14-04-1{step}+00"
        save(folder / "model.ckpt", state_dict(step))
        (folder / "counter.ckpt").write_text(str(step))
        (folder / "brain.ckpt").write_text(f"avg_train_loss: 0.5\noptimizer_step: {step}\nstep: 1\n")
        (folder / "CKPT.yaml").write_text("# yamllint disable\nend-of-epoch: true\nunixtime: 1795961055.4933255\n")
    return Case()


def lerobot(run: Path) -> Case:
    """Write LeRobot's folders, its processors beside the policy."""
    for step in STEPS:
        folder = run / f"{step:06}" / "pretrained_model"
        hf_folder(folder, step, None)
        processor = "policy_preprocessor_step_3_normalizer_processor.safetensors"
        save_file({"mean": torch.ones(2)}, folder / processor)
        (folder / "policy_preprocessor.json").write_text(json.dumps({"steps": [{"state_file": processor}]}))
        (folder.parent / "training_state").mkdir()
        (folder.parent / "training_state" / "training_step.json").write_text(json.dumps({"step": step}))
    return Case()


def openpi(run: Path) -> Case:
    """Write what openpi's trainer of PyTorch leaves."""
    for step in STEPS:
        hf_folder(run / str(step), step, None)
        save(run / str(step) / "metadata.pt", {"global_step": step, "timestamp": 1.0})
    return Case()


def nanochat(run: Path) -> Case:
    """Write nanochat's three files for each step."""
    for step in STEPS:
        save(run / f"model_{step:06}.pt", state_dict(step))
        save(run / f"optim_{step:06}_rank0.pt", {"state": {}})
        (run / f"meta_{step:06}.json").write_text(json.dumps({"step": step}))
    return Case()


def megatron_common(folder: Path, step: int) -> None:
    """Add what Megatron-Core writes beside the shards."""
    save(folder / "common.pt", {"iteration": step, "args": argparse.Namespace(consumed_train_samples=4 * step)})
    (folder / "metadata.json").write_text("{}")


def lora(names: Sequence[str], metadata: Callable[[int], dict[str, str]]) -> Callable[[Path], Case]:
    """Return a builder of LoRAs, one file for each step under a name of its own, with clocks in the header."""

    def build(run: Path) -> Case:
        run.mkdir()
        for step, name in zip(STEPS, names, strict=True):
            save_file(state_dict(step), run / f"{name}.safetensors", metadata=metadata(step))
        return Case()

    return build


kohya = lora(("style-000001", "style-000002", "style"), lambda step: {"ss_steps": str(step), "ss_epoch": str(step)})
ai_toolkit = lora(
    ("style_000000001", "style_000000002", "style"),
    lambda step: {"training_info": json.dumps({"step": step, "epoch": 0})},
)


def peft(run: Path) -> Case:
    """Write adapters as PEFT and the Trainer do; which modules are adapted comes in any order."""
    for step in STEPS:
        folder = run / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        names = {name: f"base_model.model.{name}.lora_A.weight" for name in state_dict(step)}
        tensors = {names[name]: tensor for name, tensor in state_dict(step).items()}
        save_file(tensors, folder / "adapter_model.safetensors")
        targets = ["q", "v"] if step == 1 else ["v", "q"]
        config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": targets}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))

    class Adapter(Case):
        def expected(self, weights: Sequence[float] = (0.25, 0.25, 0.5)) -> Tensors:
            return {
                f"base_model.model.{name}.lora_A.weight": tensor for name, tensor in super().expected(weights).items()
            }

    return Adapter()


def deepspeed(run: Path) -> Case:
    """Write DeepSpeed's folders for one rank of tensors, half precision, and the file that names the newest."""
    for step in STEPS:
        module = {
            name: tensor.bfloat16() if tensor.is_floating_point() else tensor
            for name, tensor in state_dict(step).items()
        }
        saved = {"module": module, "global_steps": step, "global_samples": 8 * step, "ds_version": "0.19"}
        save(run / f"global_step{step}" / "mp_rank_00_model_states.pt", saved)
        save(run / f"global_step{step}" / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", {})
    (run / "latest").write_text("global_step3")
    return Case(dtype=torch.bfloat16)


def saved_by_zero(step: int) -> Saved:
    """Return the weights of a step as three ranks of ZeRO 3 have them."""
    weights = state_dict(step)
    buffers = {name: tensor for name, tensor in weights.items() if not tensor.is_floating_point()}
    trained = {name: tensor for name, tensor in weights.items() if name not in buffers}
    return Saved(ranks=3, groups=[trained], buffers=buffers, dtype=torch.float32, step=step)


def deepspeed_zero(run: Path) -> Case:
    """Write what the ranks of ZeRO 3 save."""
    for step in STEPS:
        saved_by_zero(step).write(run / f"global_step{step}")
    return Case()


def deepspeed_universal(run: Path) -> Case:
    """Write what DeepSpeed's converter makes of that."""
    for step in STEPS:
        saved_by_zero(step).write_universal(run / f"global_step{step}")
    return Case()


def files_of_ranks(run: Path) -> Case:
    """Write what two ranks of FSDP save, as verl names it."""
    for step in STEPS:
        save_ranks(run / f"global_step_{step}" / "actor", shared(step), {"fsdp": 2})
    return Case()


def flattened(run: Path) -> Case:
    """Write what two ranks of FSDP save of what it flattened, as OLMo does; of integers in rows of their own."""
    for step in STEPS:
        rows: dict[str, dict[str, torch.Tensor]] = {"": {}}
        for name, tensor in state_dict(step).items():
            module, _, last = ("", "", name) if tensor.is_floating_point() else name.rpartition(".")
            rows.setdefault(module, {})[last] = tensor
        save_flat(run / f"step{step}", rows, 2, step=step)
    return Case()


def items_of_ranks(run: Path) -> Case:
    """Write what two ranks save with torch_checkpointing."""
    for step in STEPS:
        for item, value in (("model", shared(step)), ("train_state", {"step": step})):
            save_ranks(run / f"at{step}", value, {"fsdp": 2}, name=item + "_{rank}.pt")
    return Case()


def shared(step: int) -> dict[str, Any]:
    """Return the weights, of which ranks share the rows of parameters, however many."""
    return {
        name: Cut(tensor, [Shard(0)]) if tensor.is_floating_point() else tensor
        for name, tensor in state_dict(step).items()
    }
