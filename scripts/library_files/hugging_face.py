"""Libraries around Hugging Face's formats: sentence-transformers, PEFT, Diffusers, Accelerate."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from library_files.folders import drop_state, fresh

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijk"]


def _tokenizer() -> Any:
    """Return a tokenizer of single letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    letters.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=letters, mask_token="[MASK]", model_max_length=16, **special)


def _bert(seed: int, folder: str) -> str:
    """Save a tiny BERT with its tokenizer, and return the folder."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=16, **sizes)).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def _train_pairs(model: Any, made: Path, **arguments: Any) -> None:
    """Train a model of sentence-transformers on a few pairs, with a checkpoint at each step."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    pairs = Dataset.from_dict({"anchor": ["a b", "c d", "e f", "g h"], "positive": ["b a", "d c", "f e", "h g"]})
    settings = SentenceTransformerTrainingArguments(
        str(made), max_steps=3, save_steps=1, per_device_train_batch_size=2, learning_rate=0.01, report_to=[],
        use_cpu=True, disable_tqdm=True, **arguments,
    )  # fmt: skip
    loss = MultipleNegativesRankingLoss(model)
    SentenceTransformerTrainer(model=model, args=settings, train_dataset=pairs, loss=loss).train()
    drop_state(made)


def sentence_transformers(folder: Path) -> Path:
    """Train a model with two Dense modules; and one with a Router, without weights in its own folder."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Router, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    made = fresh(folder, "sentence-transformers")
    with tempfile.TemporaryDirectory() as bert:
        body = Transformer(_bert(0, bert), max_seq_length=16)
        torch.manual_seed(1)
        dense = [Dense(8, 4), Dense(4, 4, bias=False)]
        _train_pairs(SentenceTransformer(modules=[body, Pooling(8), *dense], device="cpu"), made / "dense")
        query, document = ([Transformer(_bert(seed, bert), max_seq_length=16), Pooling(8)] for seed in (2, 3))
        router = Router.for_query_document(query_modules=query, document_modules=document)
        mapping = {"anchor": "query", "positive": "document"}
        _train_pairs(SentenceTransformer(modules=[router], device="cpu"), made / "router", router_mapping=mapping)
    return made


def peft(folder: Path) -> Path:
    """Train two adapters of one model with transformers' Trainer, which has PEFT save the second in its own folder."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import BertForSequenceClassification, Trainer, TrainingArguments

    made = fresh(folder, "peft")
    with tempfile.TemporaryDirectory() as bert:
        model = BertForSequenceClassification.from_pretrained(_bert(0, bert))
        model.config.name_or_path = model.name_or_path = "base"
        torch.manual_seed(1)
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["query"], init_lora_weights=False))
        adapted.add_adapter("second", LoraConfig(r=2, target_modules=["value"], init_lora_weights=False))
        adapted.base_model.set_adapter(["default", "second"])
        rows = [{"input_ids": torch.tensor([2, 5 + n, 3]), "labels": n % 2} for n in range(4)]
        settings = TrainingArguments(
            str(made), max_steps=3, save_steps=1, learning_rate=0.1, report_to=[], use_cpu=True, disable_tqdm=True
        )
        Trainer(model=adapted, args=settings, train_dataset=rows).train()
    drop_state(made)
    return made


def diffusers(folder: Path) -> Path:
    """Save a pipeline of two models and a scheduler, three times."""
    import torch
    from diffusers import DDIMScheduler, LDMPipeline, UNet2DModel, VQModel

    made = fresh(folder, "diffusers")
    torch.manual_seed(0)
    blocks = {"block_out_channels": (4,), "norm_num_groups": 2, "layers_per_block": 1}
    unet = UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        add_attention=False, **blocks,
    )  # fmt: skip
    vqvae = VQModel(sample_size=8, latent_channels=3, num_vq_embeddings=4, **blocks)
    for step in (100, 200, 300):
        with torch.no_grad():
            for parameter in (*unet.parameters(), *vqvae.parameters()):
                parameter += torch.randn_like(parameter) / 10
        LDMPipeline(vqvae=vqvae, unet=unet, scheduler=DDIMScheduler()).save_pretrained(made / f"step-{step}")
    return made


def accelerate(folder: Path) -> Path:
    """Save the state of a model with Accelerate, which records no clock."""
    import torch
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration

    made = fresh(folder, "accelerate")
    torch.manual_seed(0)
    settings = ProjectConfiguration(str(made), automatic_checkpoint_naming=True)
    accelerator = Accelerator(cpu=True, project_config=settings)
    model = accelerator.prepare(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)))
    for _ in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
        accelerator.save_state()
    drop_state(made)
    return made


WRITERS: Mapping[str, Callable[[Path], Path]] = {
    "sentence-transformers": sentence_transformers,
    "peft": peft,
    "diffusers": diffusers,
    "accelerate": accelerate,
}
