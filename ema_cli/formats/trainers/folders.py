"""Names in checkpoints that are folders: what the weights are called, where trainers put them, what is written last.

Data only; read it as a page.
"""

from __future__ import annotations

from collections.abc import Mapping

from ema_cli.law.time import Unit
from ema_cli.text import lazy_pattern

# What a folder calls its weights when `from_pretrained` loads it, as safetensors and as .bin: whole or with an index.
BASES: Mapping[str, str] = {
    "model": "pytorch_model",
    "diffusion_pytorch_model": "diffusion_pytorch_model",
    "adapter_model": "adapter_model",
    "pytorch_lora_weights": "pytorch_lora_weights",
}
ADAPTERS = ("adapter_model", "pytorch_lora_weights")
ADAPTER_FILES = frozenset({"adapter_model.safetensors", "adapter_model.bin"})
ADAPTER_CONFIG = "adapter_config.json"
# Files of tensors beside these that are parts of the model, each the only one of its kind: the value head of
# LLaMA-Factory, the projector and the trained remainder of LLaVA. Written as they were: their loaders ask for the name.
EXTRAS = ("value_head", "mm_projector", "non_lora_trainables")
SHARD = lazy_pattern(r"-\d{5,}-of-\d{5,}\.(?:safetensors|bin)$")
# A shard of one rank's, as torch's HuggingFaceStorageWriter names it when each rank writes its own: the rank from 1,
# the name of the model, the shard's number, their count. They have no index; who puts them together writes into
# CONSOLIDATED.
RANK_SHARD = lazy_pattern(r"^shard-(\d{5,})-(\w+)-(\d{5,})-of-(\d{5,})\.safetensors$")
CONSOLIDATED = "consolidated"
SHARDED = "sharded"  # where torch leaves the files of ranks that it puts together beside
HF_METADATA = ".hf_metadata"  # beside such shards: NeMo AutoModel's configuration and tokenizer
SAME_MODEL = (CONSOLIDATED, SHARDED)  # folders in a checkpoint's with its model once more
# Parts of a Diffusers pipeline, each in a folder of its name.
COMPONENTS = (
    "unet", "transformer", "transformer_2", "controlnet", "prior", "vae", "text_encoder", "text_encoder_2",
    "text_encoder_3", "image_encoder", "decoder",
)  # fmt: skip
AVERAGES_BESIDE = "_ema"  # what Diffusers' scripts put after the name of a component, in the name of its averages
AVERAGES_INSIDE = "ema"  # the folder of averages in a checkpoint that is a folder, as our callbacks write it
PIPELINE = "model_index.json"  # of Diffusers: which folders hold the parts of a pipeline
MODULES = "modules.json"  # of sentence-transformers: which folders hold the parts after the transformer
ROUTER = "router_config.json"  # of one such part: which folders in its own hold the modules that it leads to
# The ends of classes that such files name and that have no weights.
WEIGHTLESS = lazy_pattern(
    r"(?:Pooling|Normalize|Dropout|BoW|WordWeights|Router|Asym|Scheduler|Tokenizer(?:Fast)?|Extractor"
    r"|Processor(?:Fast)?|Watermark(?:er)?)$"
)
TRAINER_STATE = "trainer_state.json"  # of the Hugging Face Trainer, written after the weights
# ---- Folders of DeepSpeed ----

DEEPSPEED_TAG = lazy_pattern(r"^global_step(\d+)$")
# Model states: whole, by the rank of tensors; of a rank of ZeRO stage 3, and the rank of tensors. Optimizer states.
DEEPSPEED_MODEL = lazy_pattern(r"^mp_rank_(\d+)_model_states\.pt$")
DEEPSPEED_PART = lazy_pattern(r"^zero_pp_rank_(\d+)_mp_rank_(\d+)_model_states\.pt$")
DEEPSPEED_OPTIMIZER = lazy_pattern(r"^(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt$")
DEEPSPEED_UNIVERSAL = "zero"  # with a folder for each parameter, in the universal format
UNIVERSAL_WEIGHT = "fp32.pt"  # in each, beside the states of the optimizer

# ---- Folders of torch.distributed.checkpoint ----

DCP_METADATA = ".metadata"
DCP_META = "meta.pt"  # in which Lightning keeps what is not a tensor
# Where trainers put the folder with the shards inside a checkpoint, and which trainer does.
OLMO_FOLDER = "model_and_optim"
DCP_FOLDERS: Mapping[str, str] = {
    "pytorch_model_fsdp_*": "accelerate",
    OLMO_FOLDER: "OLMo-core",
    "weights": "NeMo",
}

# ---- Folders of torch_checkpointing ----

ITEM_METADATA = "metadata.pkl"  # beside a file for each item and each rank

# ---- What says that a checkpoint is whole ----

LATEST = ("latest", "latest_checkpointed_iteration.txt")  # beside it, name the newest one: DeepSpeed, Megatron
UNFINISHED_MARK = "-unfinished"  # NeMo's, after the folder's name, while it is written
OLMO_MARK = ".metadata.json"  # beside the folder with the shards
OLMO_TRAIN = "train"  # the trainer's state, which is written first
OLMO_STATE = "rank0.pt"  # in it, with these clocks; the epoch there is the one that runs
OLMO_CLOCKS = {Unit.BATCH: "global_step", Unit.TOKEN: "global_train_tokens_seen"}
OLMO_MERGED = lazy_pattern(r"^step\d+-")  # averages of OLMo-core's ModelMergeCallback, with neither of the two
MEGATRON_MARK, MEGATRON_COMMON = "metadata.json", "common.pt"
