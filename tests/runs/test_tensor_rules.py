"""Which tensors are averaged, copied, refused: decided by names, dtypes and shapes as each library writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ema_cli.checkpoint import Checkpoint, TensorSpec
from ema_cli.dtypes import DTYPES
from ema_cli.errors import CheckpointError
from ema_cli.runs.tensor_rules import ADAPTER_NOTE, check_averageable, copied_names, refusals, tensor_notes
from tests.folding.in_memory import MemoryTensors

PACKED = "packed weights, which mean nothing without their scales"
FEW_BITS = "has too few bits to be averaged"


def specs(**tensors: str) -> dict[str, TensorSpec]:
    """Return specs from 'I32 4 8', each under its name; '__' stands for a dot."""
    found = {}
    for name, text in tensors.items():
        dtype, *shape = text.split()
        found[name.replace("__", ".")] = TensorSpec(DTYPES[dtype], tuple(map(int, shape)))
    return found


# Names, dtypes and shapes as the libraries write them; then those that are refused, and a part of the reason.
LIBRARIES: dict[str, tuple[dict[str, TensorSpec], dict[str, str]]] = {
    "GPTQ": (
        specs(q__qweight="I32 8 64", q__qzeros="I32 1 8", q__scales="F16 1 64", q__g_idx="I32 64", q__bias="F16 64"),
        {"q.qweight": PACKED, "q.qzeros": PACKED, "q.scales": "scales 'q.q"},
    ),
    "AWQ": (
        specs(q__qweight="I32 64 8", q__qzeros="I32 1 8", q__scales="F16 1 64", norm__weight="F16 64"),
        {"q.qweight": PACKED, "q.qzeros": PACKED, "q.scales": "scales 'q.q"},
    ),
    "bitsandbytes, 4 bits": (
        {
            **specs(q__weight="U8 2048 1", q__bias="F16 64"),
            **specs(q__weight__absmax="U8 64", q__weight__quant_map="F32 16"),
            **specs(q__weight__nested_absmax="F32 1", q__weight__nested_quant_map="F32 256"),
            "q.weight.quant_state.bitsandbytes__nf4": TensorSpec(DTYPES["U8"], (90,)),
        },
        {"q.weight": PACKED, **{f"q.weight.{name}": "scales 'q.weight'" for name in ("quant_map", "nested_absmax")}},
    ),
    "bitsandbytes, 4 bits stored as bfloat16": (
        {
            **specs(q__weight="BF16 1024 1", q__bias="F16 64"),
            "q.weight.absmax": TensorSpec(DTYPES["F32"], (64,)),
            "q.weight.quant_state.bitsandbytes__fp4": TensorSpec(DTYPES["U8"], (90,)),
        },
        {"q.weight": PACKED, "q.weight.absmax": "scales 'q.weight'"},
    ),
    "bitsandbytes, 8 bits": (
        specs(q__weight="I8 64 32", q__SCB="F32 64", q__weight_format="U8", q__bias="F16 64"),
        {"q.weight": PACKED, "q.SCB": "scales 'q.weight'"},
    ),
    "MXFP4": (
        specs(mlp__gate_blocks="U8 4 90 16", mlp__gate_scales="U8 4 90", mlp__gate_bias="BF16 4"),
        {"mlp.gate_blocks": PACKED},
    ),
    "compressed-tensors, packed": (
        specs(q__weight_packed="I32 64 8", q__weight_scale="BF16 64 1", q__weight_shape="I64 2"),
        {"q.weight_packed": PACKED, "q.weight_scale": "scales 'q.weight_packed'"},
    ),
    "compressed-tensors, 8 bits": (
        specs(q__weight="I8 64 32", q__weight_scale="BF16 64 1", q__input_scale="BF16 1"),
        {"q.weight": PACKED, "q.weight_scale": "scales 'q.weight'", "q.input_scale": "scales 'q.weight'"},
    ),
    "fp8 with scales in blocks": (
        specs(q__weight="F8_E4M3 256 128", q__weight_scale_inv="F32 2 1", norm__weight="BF16 128"),
        {"q.weight": FEW_BITS, "q.weight_scale_inv": "scales 'q.weight'"},
    ),
    "NVFP4": (
        specs(q__weight="U8 64 16", q__weight_scale="F8_E4M3 64 2", q__weight_scale_2="F32", q__input_scale="F32"),
        {"q.weight": PACKED, "q.weight_scale": FEW_BITS, "q.weight_scale_2": "scales", "q.input_scale": "scales"},
    ),
    "4 and 6 bits": (
        specs(a="F4 64", b="F6_E2M3 64", c="F6_E3M2 64", d="F8_E5M2 64", e="F8_E8M0 64"),
        dict.fromkeys("abcde", FEW_BITS),
    ),
    "EETQ, HQQ, AQLM": (
        {
            **specs(a__weights="I8 64 32", a__weight_scales="F16 32", b__W_q="U8 64 32"),
            **specs(c__codes="I16 8 8 1", c__codebooks="F16 1 8 1 8"),
        },
        {"a.weights": PACKED, "a.weight_scales": "scales", "b.W_q": PACKED, "c.codes": PACKED, "c.codebooks": "scales"},
    ),
    "quanto and torchao": (
        {
            **specs(a__weight___data="I8 4 4", a__weight___scale="BF16 4 1"),
            "b.weight:_data": TensorSpec(DTYPES["I8"], (4, 4)),
            "b.weight:_scale": TensorSpec(DTYPES["F32"], (4,)),
        },
        {"a.weight._data": PACKED, "a.weight._scale": "scales", "b.weight:_data": PACKED, "b.weight:_scale": "scales"},
    ),
    "an extra state": (
        specs(q__weight="BF16 4 4", q___extra_state="U8 90", _extra_state="F32 3"),
        dict.fromkeys(("q._extra_state", "_extra_state"), "only the module's own code can read"),
    ),
    "DoRA": (
        specs(q__lora_A__weight="F32 4 8", q__lora_B__weight="F32 8 4", q__lora_magnitude_vector__weight="F32 8"),
        {"q.lora_magnitude_vector.weight": "directions and magnitudes cannot be averaged apart"},
    ),
    "DoRA of others": (specs(q__dora_scale="F32 8 1"), {"q.dora_scale": "cannot be averaged apart"}),
    "FSDP, flattened": (
        specs(_fsdp_wrapped_module___flat_param="F32 99", flat_param_0="F32 9"),
        {"_fsdp_wrapped_module._flat_param": "one rank's part", "flat_param_0": "one rank's part"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("label", LIBRARIES)
def test_packed_weights_and_their_scales_are_refused_with_the_reason(label: str) -> None:
    """Packed weights, floating scales beside them, and what cannot be averaged apart are refused, with the reason."""
    tensors, expected = LIBRARIES[label]
    found = refusals(tensors)
    assert {name: reason for name, reason in expected.items() if reason not in found.get(name, "")} == {}
    # Everything else there is copied by its dtype, or averaged as it should be.
    floating = {name for name, spec in tensors.items() if spec.dtype.averaged}
    assert {name for name in found if name not in expected} & floating == (
        {"q.weight.nested_quant_map"} if label == "bitsandbytes, 4 bits" else set()
    )


@pytest.mark.parametrize("label", LIBRARIES)
def test_packed_weights_that_are_copied_whole_are_not_refused(label: str) -> None:
    """With everything that belongs together copied, nothing is left to refuse; without a part of it, that part is."""
    tensors, _ = LIBRARIES[label]
    found = refusals(tensors)
    assert refusals(tensors, copied_names(tensors, ["*"])) == {}
    assert refusals(tensors, found.keys()) == {}
    for name in found:
        assert refusals(tensors, found.keys() - {name}).keys() == {name}


ORDINARY = specs(
    norm__num_batches_tracked="I64", step="I64", mask="BOOL 8 8", attn__bias="BOOL 1 1 8 8", position_ids="I64 1 512",
    relative_position_index="I64 49 49", attn__masked_bias="F32", embed__weight="F32 9 4", counter__weight="I64",
    token_weight="I64 9", layer__scale="F32 4", layer__logit_scale="F32", layer__weight_scale="F32 4",
    layer__scales="F32 4", codebooks="F32 8 8", quantizer__codes="F32 8 8", layer__absmax="F32 4", weights="F32 3",
    rotary__inv_freq="F32 8", vq__cluster_size="F32 8", blocks__weight="F32 2 2", my_blocks="I64 3",
    weight_mask="BOOL 4 4", head__weight="C64 2 2", wide__weight="F64 2 2",
)  # fmt: skip


def test_ordinary_tensors_are_not_refused() -> None:
    """Counters, masks, indices, and scales that are parameters of their own, are what they look like."""
    assert refusals(ORDINARY) == {}
    assert tensor_notes(ORDINARY) == []


def test_a_scale_elsewhere_than_packed_weights_is_a_parameter() -> None:
    """A model that is packed in part has ordinary scales in its other parts: those are averaged."""
    tensors = specs(q__qweight="I32 8 8", q__scales="F16 8", k__scale="F32 4", k__weight="F32 4 4", scales="F32 1")
    assert refusals(tensors).keys() == {"q.qweight", "q.scales"}


@pytest.mark.parametrize(
    "names",
    [
        ["base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight"],
        ["unet.q.lora.down.weight", "unet.q.lora.up.weight"],
        ["lora_unet_q.lora_down.weight"],
        ["base_model.model.embed.lora_embedding_A"],
        ["q.lora_A.default.weight"],
    ],
)
def test_adapters_are_noted(names: list[str]) -> None:
    """Averaging A and B is not averaging BA: said for every way in which adapters are named."""
    tensors = {name: TensorSpec(DTYPES["F32"], (4, 4)) for name in names}
    assert tensor_notes(tensors) == [ADAPTER_NOTE]
    assert refusals(tensors) == {}


@pytest.mark.parametrize("names", [["lora.weight"], ["flora_A.weight"], ["explora.down"], ["lora_Alpha.weight"]])
def test_names_that_only_sound_alike_are_no_adapters(names: list[str]) -> None:
    """A part that is called so is none."""
    assert tensor_notes({name: TensorSpec(DTYPES["F32"], (4, 4)) for name in names}) == []


def test_patterns_are_of_whole_names_and_mind_case() -> None:
    """`--copy` takes shell patterns: of the whole name, case and all; what matches nothing copies nothing."""
    tensors = specs(a__weight="F32 1", a__bias="F32 1", A__weight="F32 1", b__c__weight="F32 1")
    assert copied_names(tensors, ["a.*"]) == {"a.weight", "a.bias"}
    assert copied_names(tensors, ["*.weight"]) == {"a.weight", "A.weight", "b.c.weight"}
    assert copied_names(tensors, ["weight", "[ab].bias"]) == {"a.bias"}
    assert copied_names(tensors, []) == frozenset()


def checkpoint(tensors: dict[str, TensorSpec]) -> Checkpoint:
    """Return a checkpoint with these specs and no bytes."""
    weights = MemoryTensors({})
    weights.specs = tensors
    return Checkpoint("step-5", Path("run/step-5"), weights, (), "memory")


def test_the_error_names_file_tensor_reason_and_way_out() -> None:
    """The first tensor is named with the reason, the others counted, and the option that copies."""
    tensors = LIBRARIES["GPTQ"][0]
    with pytest.raises(CheckpointError) as caught:
        check_averageable(checkpoint(tensors), frozenset())
    assert str(caught.value) == f"run/step-5: 'q.qweight' cannot be averaged: {PACKED} (and 2 more)"
    assert "copy='q.qweight'" in (caught.value.hint or "")
    check_averageable(checkpoint(tensors), copied_names(tensors, ["q.*"]))
    check_averageable(checkpoint(ORDINARY), frozenset())
