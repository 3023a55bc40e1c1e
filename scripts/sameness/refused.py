"""What is recognised and not read: each is refused with its reason and the way out."""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from .tensors import Net, Tensors, model, save, save_legacy, save_tensors, save_text

Make = Callable[[Path], object]
STEPS = (1, 2, 3)


def saved(step: int = 1) -> bytes:
    """Return what torch.save writes."""
    file = io.BytesIO()
    torch.save({"model": model(step), "step": step}, file)
    return file.getvalue()


def one(name: str, content: Callable[[], bytes] | bytes) -> Make:
    """Return a maker of a single file."""

    def make(run: Path) -> None:
        path = run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content())

    return make


def beside(tensors: Tensors, suffix: str = "safetensors") -> Make:
    """Return a maker of a run whose checkpoints hold these tensors beside an ordinary one."""

    def make(run: Path) -> None:
        for step in STEPS:
            whole = {"norm.weight": torch.ones(2) * step, **tensors}
            if suffix == "safetensors":
                save_tensors(run / f"step-{step}.{suffix}", whole)
            else:
                save(run / f"step-{step}.{suffix}", {"model": whole})

    return make


def deepspeed(*names: str, **more: object) -> Make:
    """Return a maker of a folder of DeepSpeed's with these files."""

    def make(run: Path) -> None:
        for name in names:
            save(run / "global_step5" / name, {"module": model(1), "global_steps": 5, **more})

    return make


def _tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo("a.pt")
        info.size = len(saved())
        archive.addfile(info, io.BytesIO(saved()))
    return file.getvalue()


def _deflated() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved())) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(zipfile.ZipInfo(name), old.read(name), zipfile.ZIP_DEFLATED)
    return file.getvalue()


def _script() -> bytes:
    """Return a TorchScript archive, as far as it takes to see that it is one; torch's own differ each time."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved())) as old, zipfile.ZipFile(file, "w") as new:
        top = old.namelist()[0].partition("/")[0]
        contents = {name: old.read(name) for name in old.namelist()}
        contents |= {f"{top}/constants.pkl": b"\x80\x02).", f"{top}/code/__torch__.py": b"class Net(Module):\n"}
        for name, content in contents.items():
            new.writestr(zipfile.ZipInfo(name), content)
    return file.getvalue()


def _keep(*_: object) -> None:
    """Stand for a hook."""


def _hooked(run: Path) -> None:
    module = Net(1)
    module.register_state_dict_post_hook(_keep)
    save(run / "step-1.pt", module)


def _megatron(run: Path) -> None:
    for rank in (0, 1):
        saved = {"model": model(rank), "iteration": 5, "args": None}
        save(run / "iter_0000005" / f"mp_rank_0{rank}" / "model_optim_rng.pt", saved)
    save_text(run / "latest_checkpointed_iteration.txt", "5")


def _marked(name: str) -> Make:
    """Return a maker of a folder that a file in it marks as of another framework."""
    return one(f"100/{name}", b"")


def _quantized(run: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.quint8)
    beside({"q": quantized}, "pt")(run)


U8, I32, HALF = torch.uint8, torch.int32, torch.float16
ZERO_3, RANK = "zero_pp_rank_0_mp_rank_00_model_states.pt", "mp_rank_0{}_model_states.pt"
GPTQ = {"q.qweight": torch.zeros(4, 2, dtype=I32), "q.scales": torch.ones(4, dtype=HALF)}
MAKERS: dict[str, Make] = {
    "zero-3": deepspeed(ZERO_3),
    "tensor-parallel": deepspeed(RANK.format(0), RANK.format(1)),
    "tensor-parallel-said": deepspeed(RANK.format(0), mp_world_size=4),
    "pipeline-parallel": deepspeed(RANK.format(0), "layer_03-model_states.pt"),
    "experts": deepspeed(RANK.format(0), "layer_0_expert_0_mp_rank_00_model_states.pt"),
    "float8": beside({"q.weight": torch.zeros(4).to(torch.float8_e4m3fn)}),
    "float8-torch": beside({"q.weight": torch.zeros(4).to(torch.float8_e5m2)}, "pt"),
    "gptq": beside(GPTQ),
    "mxfp4": beside({"e.down_blocks": torch.zeros(2, 2, dtype=U8), "e.down_scales": torch.zeros(2, dtype=U8)}),
    "int8-weights": beside({"q.weight": torch.zeros(4, 2, dtype=torch.int8), "q.SCB": torch.ones(4)}),
    "extra-state": beside({"q._extra_state": torch.zeros(4, dtype=U8)}),
    "extra-state-bytes": beside({"q._extra_state": io.BytesIO(b"1")}, "pt"),
    "dora": beside({"q.lora_magnitude_vector": torch.ones(4)}),
    "flat-param": beside({"_flat_param": torch.ones(4)}),
    "sparse": beside({"s": torch.ones(2, 2).to_sparse()}, "pt"),
    "quantized": _quantized,
    "meta-tensor": beside({"s": torch.empty(2, 2, device="meta")}, "pt"),
    "gzip": one("ep0-ba1-rank0.pt.gz", lambda: gzip.compress(saved(), mtime=0)),
    "xz": one("step-1.pt.xz", lambda: lzma.compress(saved())),
    "zstd": one("step-1.pt.zst", b"\x28\xb5\x2f\xfd" + bytes(99)),
    "tar": one("step-1.tar", _tar),
    "lfs": one("step-1.bin", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"),
    "gguf": one("step-1.pt", b"GGUF" + bytes(99)),
    "hdf5": one("step-1.pt", b"\x89HDF\r\n\x1a\n" + bytes(99)),
    "deflated": one("step-1.pt", _deflated),
    "torchscript": one("step-1.pt", _script),
    "hooked": _hooked,
    "own-object": lambda run: save(run / "step-1.pt", {"model": torch.Generator}),
    "megatron": _megatron,
    "fsdp-rank": lambda run: save(run / "pytorch_model_fsdp_rank0.bin", model(1)),
    "fairseq-shard": lambda run: save(run / "checkpoint1-shard0.pt", {"model": model(1)}),
    "a-file-each-rank": _marked("metadata.pkl"),
    "orbax": _marked("_CHECKPOINT_METADATA"),
    "flax": _marked("flax_model.msgpack.index.json"),
    "tensorflow": _marked("saved_model.pb"),
    "text": one("step-1.pt", b"hello, this is text"),
    "pickle-of-a-list": lambda run: save(run / "step-1.pt", [1, 2]),
    "plain-pickle": one("step-1.pt", b"\x80\x04N."),
    "plain-zip": one("step-1.pt", b"PK\x05\x06" + bytes(18)),
    "legacy-without-weights": lambda run: save_legacy(run / "step-1.pt", {"lr": 1.0}),
    "dcp-pieces": lambda run: save_tensors(run / "step-1.safetensors", model(1), DCP_SHARDING_INFO="{}"),
}
