"""Which tensors of a model are averaged, under which names, and what happens when the model changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ema_cli import EMA
from ema_cli.errors import RunError
from ema_cli.online.tracked import Tracked
from tests.online.models import EveryKind, assert_near, assert_same, bits, dense, held, small_model, taken, walk


def trajectory(model: nn.Module, ema: EMA, steps: int = 8) -> list[dict[str, Tensor]]:
    """Move the model, update, and return what it held: all of its tensors once, also those that are not saved."""
    random = torch.Generator().manual_seed(4)
    models = []
    for _ in range(steps):
        with torch.no_grad():
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                if name.startswith(("frozen", "shown")):
                    continue
                if tensor.is_floating_point() or tensor.is_complex():
                    tensor += torch.randn(tensor.shape, generator=random, dtype=torch.float64).to(tensor.dtype)
                elif tensor.dtype is not torch.bool:
                    tensor += 1
                else:
                    tensor.logical_not_()
        ema.update()
        named = (*model.named_parameters(), *model.named_buffers())
        models.append({name: tensor.detach().clone() for name, tensor in named if not name.startswith("frozen")})
    return models


@pytest.mark.parametrize("offload", [None, "cpu"])
def test_every_kind_of_tensor(offload: Any):
    """Tied ones once, scalars, empty, complex, double, half, masks, strided: each the average, in float32 at least."""
    torch.manual_seed(0)
    model = EveryKind()
    ema = EMA(model, "3ba", offload=offload)
    expected = dense(trajectory(model, ema), 3)
    found = held(ema)
    assert "head.weight" not in found
    assert not [name for name in found if name.startswith("frozen")]
    assert_near(found, expected)
    assert found["mask"].isinf().sum() == 3
    types = {name: found[name].dtype for name in ("wide", "wave", "narrow", "brain", "steps", "flags", "scale")}
    assert types == {
        "wide": torch.float64, "wave": torch.complex64, "narrow": torch.float32, "brain": torch.float32,
        "steps": torch.int64, "flags": torch.bool, "scale": torch.float32,
    }  # fmt: skip


def test_every_kind_of_tensor_is_applied_and_given_back():
    """applied() puts all of them in place, rounded to their own types, and gives all of them back."""
    torch.manual_seed(0)
    model = EveryKind()
    ema = EMA(model, "3ba")
    trajectory(model, ema)
    before, average = bits(model), held(ema)
    with ema.applied():
        assert model.head.weight is model.embed.weight
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if not name.startswith("frozen"):
                assert torch.equal(tensor, average[name].to(tensor.dtype)), name
    assert_same(bits(model), before)


def test_large_tensors_of_every_layout():
    """What is too large for one call with others is moved in parts, whatever its type and strides."""
    random = torch.Generator().manual_seed(2)
    model = nn.Module()
    for dtype in (torch.float32, torch.bfloat16):
        name = f"in_{str(dtype)[6:]}"
        model.register_parameter(name, nn.Parameter(torch.randn(300, 1001, generator=random).to(dtype)))
        model.register_parameter(f"{name}_t", nn.Parameter(torch.randn(111, 301, generator=random).to(dtype).t()))
        last = torch.randn(4, 12, 33, 31, generator=random).to(dtype).to(memory_format=torch.channels_last)
        model.register_parameter(f"{name}_last", nn.Parameter(last))
    ema = EMA(model, ("3ba", "50ba"))
    models = trajectory(model, ema, 3)
    for name in ema.names:
        assert_near(held(ema, name), dense(models, float(name[:-2])))


def test_lazy_modules():
    """Before its first input a lazy module has no shapes: an error names it; after that it is averaged."""
    model = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d())
    ema = EMA(model, "3ba")
    with pytest.raises(RunError, match=r"'0\.weight' has no shape yet: its module is lazy") as raised:
        ema.update()
    assert "run the model on one batch" in (raised.value.hint or "")
    assert ema.averages.clocks.passed == {}
    model(torch.ones(2, 3))
    models = []
    for _ in range(4):
        walk(model)()
        assert ema.update()
        models.append(taken(model))
    assert_near(held(ema), dense(models, 3))


def more(model: nn.Sequential) -> None:
    model.add_module("more", nn.Linear(2, 2))


def fewer(model: nn.Sequential) -> None:
    del model[3]


def other_head(model: nn.Sequential) -> None:
    model[3] = nn.Linear(16, 5)


def other_parameter(model: nn.Sequential) -> None:
    model[3].weight = nn.Parameter(torch.zeros(5, 16))


def grown(model: nn.Sequential) -> None:
    model[3].weight.data = torch.zeros(5, 16)


def more_buffers(model: nn.Sequential) -> None:
    model[0].register_buffer("extra", torch.zeros(3))


def to_integers(model: nn.Sequential) -> None:
    model[1].running_mean = torch.zeros(16, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (more, "'more.weight', 'more.bias' are new, or trained only now since the average began"),
        (fewer, "'3.weight', '3.bias' are gone since the average began"),
        (other_head, r"'3.weight' is torch.float32 \[5, 16\], but was torch.float32 \[4, 16\] when the average began"),
        (other_parameter, r"'3.weight' is torch.float32 \[5, 16\], but was torch.float32 \[4, 16\]"),
        (grown, r"'3.weight' is torch.float32 \[5, 16\], but was torch.float32 \[4, 16\]"),
        (more_buffers, "'0.extra' is new, or trained only now since the average began"),
        (to_integers, r"'1.running_mean' is torch.int64 \[16\], but was torch.float32 \[16\]"),
        (lambda model: model.double(), r"'0.weight' is torch.float64 \[16, 8\], but was torch.float32 \[16, 8\]"),
        (lambda model: model[3].half(), r"'3.weight' is torch.float16 \[4, 16\], but was torch.float32"),
    ],
)
def test_a_changed_model_is_an_error_that_names_the_tensors(change: Callable[[Any], None], message: str):
    """Tensors added, removed, reshaped or cast since the average began: named, and nothing is averaged."""
    model = small_model()
    ema = EMA(model, "3ba")
    ema.update()
    before = {name: tensor.clone() for name, tensor in held(ema).items()}
    store = ema.averages.store()
    change(model)
    for call in (ema.update, ema.state_dict, lambda: ema.save("never.safetensors"), lambda: ema.applied().__enter__()):
        with pytest.raises(RunError, match=message) as raised:
            call()
        assert raised.value.hint == "begin a new average, or keep the model as it was"
    for name, part in zip(before, store.averages[0], strict=False):
        assert torch.equal(part, before[name])


def test_frozen_and_thawed():
    """A parameter that is frozen later goes on to be averaged; one that is trained only later is an error."""
    model = small_model()
    ema = EMA(model, "3ba")
    models = []
    for step in range(6):
        walk(model, step)()
        model[3].requires_grad_(step < 3)
        ema.update()
        models.append(taken(model))
    assert_near(held(ema), dense(models, 3))
    late = EMA(model, "3ba")
    late.update()
    assert "3.weight" not in held(late)
    model[3].requires_grad_(True)
    with pytest.raises(RunError, match=r"'3\.weight', '3\.bias' are new, or trained only now"):
        late.update()


def test_untied_since():
    """A tied parameter that is replaced under one of its names is a new one."""
    torch.manual_seed(0)
    model = EveryKind()
    ema = EMA(model, "3ba")
    ema.update()
    model.head.weight = nn.Parameter(torch.zeros(6, 4))
    with pytest.raises(RunError, match=r"'head\.weight' is new"):
        ema.update()


def test_buffers_that_the_module_makes_anew():
    """A module may put another tensor in place of its buffer in every step: the average follows."""
    model = small_model()
    ema = EMA(model, "3ba")
    models = []
    for step in range(6):
        walk(model, step)()
        model[1].running_mean = model[1].running_mean * 1.5
        model[1].num_batches_tracked = model[1].num_batches_tracked + 1
        ema.update()
        models.append(taken(model))
    assert_near(held(ema), dense(models, 3))


def test_load_state_dict_with_assign():
    """load_state_dict(assign=True) puts other tensors in place of all: the average goes on with those."""
    model = small_model()
    model[0].requires_grad_(False)
    ema = EMA(model, "3ba")
    models = []
    for step in range(6):
        model.load_state_dict(taken(small_model(step)), assign=True)
        ema.update()
        models.append({name: tensor for name, tensor in taken(model).items() if not name.startswith("0.")})
    assert_near(held(ema), dense(models, 3))


def test_a_module_that_is_replaced_by_its_like():
    """Another module of the same shapes under the same name is averaged from then on."""
    model = small_model()
    ema = EMA(model, "3ba")
    models = []
    for step in range(4):
        if step == 2:
            model[3] = nn.Linear(16, 4)
        walk(model, step)()
        ema.update()
        models.append(taken(model))
    assert_near(held(ema), dense(models, 3))


def test_8_bit_floats_and_sparse_tensors_are_refused_unless_frozen():
    """8-bit floats and sparse tensors are refused by name, unless they are frozen parameters."""
    model = small_model()
    model.register_buffer("scaled", torch.zeros(3).to(torch.float8_e4m3fn))
    with pytest.raises(RunError, match=r"'scaled' is torch\.float8_e4m3fn, which has no mean without its scale"):
        EMA(model).update()
    model = small_model()
    model.register_buffer("sparse", torch.eye(3).to_sparse())
    with pytest.raises(RunError, match="'sparse' is sparse"):
        EMA(model).update()
    model = small_model()
    model.register_parameter("packed", nn.Parameter(torch.zeros(3).to(torch.float8_e4m3fn), requires_grad=False))
    assert EMA(model).update()


def test_zero_3_is_refused():
    """What DeepSpeed has taken apart holds no tensor of the model's: the error names one, and another way."""
    model = small_model()
    model[0].weight.ds_id = 0
    with pytest.raises(RunError, match=r"'0\.weight' is one process's part of a flattened tensor") as raised:
        EMA(model).update()
    assert "fully_shard" in (raised.value.hint or "")


def test_names_are_bare():
    """DDP's, FSDP's and torch.compile's prefixes are no part of a name."""
    inner = nn.Module()
    inner.add_module("_checkpoint_wrapped_module", nn.Linear(2, 2))
    model = nn.Sequential(inner, torch.compile(nn.Linear(2, 2), backend="eager"))
    assert [slot.name for slot in Tracked(model).averaged] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    torch.compiler.reset()


def test_a_copy_of_the_model_is_another_model():
    """The average holds the model that it was given, not what it was copied to."""
    model = small_model()
    ema = EMA(model, "3ba")
    ema.update()
    other = copy.deepcopy(model)
    walk(other)()
    ema.update()
    assert_near(held(ema), taken(model))


@pytest.mark.parametrize("size", [3, 70])
def test_a_weight_that_is_transposed_in_place_is_noticed(size: int):
    """A square weight that is transposed begins where it began, and has its shape; its average is the new one's."""
    model = nn.Linear(size, size, bias=False)
    ema = EMA(model, half_life="0ba")
    for _ in range(3):
        ema.update()
    model.weight.data = model.weight.data.t()
    ema.update()
    with ema.applied():
        found = model.weight.detach().clone()
    assert torch.equal(found, model.weight)


def test_a_weight_that_is_cut_in_place_is_an_error():
    """So is what begins where it began and has become shorter; the error names it."""
    model = nn.Linear(3, 4)
    ema = EMA(model, half_life="5ba")
    for _ in range(3):
        ema.update()
    model.weight.data = model.weight.data[:2]
    with pytest.raises(RunError, match="'weight' is"):
        ema.update()
