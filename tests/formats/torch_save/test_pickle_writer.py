"""The pickle of a state dict: what is described comes back from Python's own machine for pickles, and from ours."""

from __future__ import annotations

import io
import pickle
import pickletools
from collections import OrderedDict
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ema_cli.checkpoint import TensorSpec
from ema_cli.dtypes import DTYPES
from ema_cli.formats.pickles.values import TensorRef
from ema_cli.formats.torch_save.pickle_writer import NoTorchType, pickle_state_dict
from tests.formats.pickles.pickled import unpickle

F32, F4 = DTYPES["F32"], DTYPES["F4"]
WITHOUT_TYPE = ("F6_E3M2", "F6_E2M3")
LENGTHS = [0, 1, 2, 3, 255, 256, 65535, 65536, (1 << 31) - 1, 1 << 31, 1 << 32]


class Described(pickle.Unpickler):
    """Python's unpickler, with what torch would do replaced by what it is told."""

    def persistent_load(self, identifier: Any) -> Any:
        """Return what the identifier says of a storage."""
        return identifier

    def find_class(self, module: str, name: str) -> Any:
        """Return torch's classes as their names, its functions as what returns their arguments."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        return (lambda *args: (name, *args)) if module == "torch._utils" else f"{module}.{name}"


def described(specs: dict[str, TensorSpec]) -> Any:
    return Described(io.BytesIO(pickle_state_dict(specs))).load()


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
shapes = (
    st.lists(st.sampled_from(LENGTHS), max_size=5)
    .map(tuple)
    .filter(lambda shape: prod(max(n, 1) for n in shape) < 1 << 59)
)


@given(st.dictionaries(names, shapes, max_size=6))
def test_names_and_shapes_come_back(wanted: dict[str, tuple[int, ...]]):
    """Any text as a name, any shape; numbers take one, two, four or more bytes; contiguous, one storage for each."""
    specs = {name: TensorSpec(F32, shape) for name, shape in wanted.items()}
    found = described(specs)
    assert isinstance(found, OrderedDict)
    assert list(found) == list(wanted)
    for number, (name, shape) in enumerate(wanted.items()):
        strides = torch.empty(shape, device="meta").stride()
        storage = ("storage", "torch.FloatStorage", str(number), "cpu", prod(shape))
        assert found[name] == ("_rebuild_tensor_v2", storage, 0, shape, strides, False, OrderedDict())


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name not in WITHOUT_TYPE])
def test_a_dtype_is_described_as_torch_does(dtype: str):
    """Class of the storage, count, and the function that is called are those in a file of torch's."""
    spec = TensorSpec(DTYPES[dtype], (2, 6))
    kind = getattr(torch, spec.dtype.torch or "")
    tensor = torch.zeros((2, 3 if dtype == "F4" else 6), dtype=torch.uint8 if spec.dtype.itemsize == 1 else kind)
    out = io.BytesIO()
    torch.save({"a": tensor.view(kind)}, out)
    record = torch._C.PyTorchFileReader(io.BytesIO(out.getvalue())).get_record("data.pkl")
    assert described({"a": spec})["a"] == Described(io.BytesIO(record)).load()["a"]


def test_many_tensors_are_set_a_thousand_at_a_time():
    """What reads it never has more than a thousand on its stack; ours reads all of them, in their order."""
    specs = {f"layer.{number}": TensorSpec(F32, (number,)) for number in range(2500)}
    data = pickle_state_dict(specs)
    operations = [operation.name for operation, _, _ in pickletools.genops(data)]
    assert operations.count("SETITEMS") == 3
    found = unpickle(data)
    assert list(found) == list(specs)
    assert all(isinstance(ref, TensorRef) and ref.shape == specs[name].shape for name, ref in found.items())


def test_a_state_dict_may_be_empty():
    """No tensors are an empty dict."""
    assert described({}) == OrderedDict()


@pytest.mark.parametrize(
    "spec", [*(TensorSpec(DTYPES[name], (2,)) for name in WITHOUT_TYPE), TensorSpec(F4, (2, 3)), TensorSpec(F4, ())]
)
def test_a_tensor_that_torch_has_no_type_for_is_named(spec: TensorSpec):
    """Floats of six bits, and an odd number of floats of four, which torch counts in pairs."""
    with pytest.raises(NoTorchType, match=r"^'b' is F[46].*, which torch has no type for$"):
        pickle_state_dict({"a": TensorSpec(F32, ()), "b": spec})
