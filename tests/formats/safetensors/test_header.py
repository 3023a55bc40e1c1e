"""safetensors: the header's rules one by one, each broken in turn; shards and their index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save, save_file

from ema_cli.errors import CheckpointError, EmaError, IncompleteCheckpoint, NoSuchWeights, UsageError
from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import ReadOptions
from tests.formats.reading import read_all

W = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
ZERO = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}


def raw(path: Path, header: bytes, data: bytes = bytes(8), length: int | None = None) -> Path:
    """Write a safetensors file with any header, and any length said to be the header's."""
    stated = len(header) if length is None else length
    path.write_bytes(stated.to_bytes(8, "little") + header + data)
    return path


def refusal(path: Path, options: ReadOptions | None = None) -> EmaError:
    """Return the error that opening the file gives."""
    with pytest.raises(EmaError) as caught:
        open_checkpoint(path, options)
    return caught.value


def test_a_handmade_header_is_read(tmp_path: Path) -> None:
    """The header that the refusals below vary is itself good: names in any order, spaces to pad."""
    header = json.dumps({"b": ZERO, "w": W, "__metadata__": {"a": "b"}}).encode() + b"   "
    weights = open_checkpoint(raw(tmp_path / "a.safetensors", header)).tensors
    assert read_all(weights) == {"b": b"", "w": bytes(8)}
    assert weights.place("b") != weights.place("w")


def test_metadata_that_is_null_is_none(tmp_path: Path) -> None:
    """MLX writes so; its header may have any length, and its tensors lie in another order than the header's."""
    late = {"dtype": "F32", "shape": [3], "data_offsets": [8, 20]}
    header = b'{"__metadata__":null,"a":%b,"w":%b} ' % (json.dumps(late).encode(), json.dumps(W).encode())
    assert (8 + len(header)) % 4
    weights = open_checkpoint(raw(tmp_path / "a.safetensors", header, bytes(range(20)))).tensors
    assert read_all(weights) == {"a": bytes(range(8, 20)), "w": bytes(range(8))}
    with safe_open(tmp_path / "a.safetensors", "pt") as official:
        assert official.get_tensor("a").numpy().tobytes() == bytes(range(8, 20))


def entry(**changes: Any) -> bytes:
    """Return a header of one tensor, 'w', with parts of its entry changed."""
    return json.dumps({"w": W | changes}).encode()


BAD_HEADERS: dict[str, tuple[bytes, str]] = {
    "a space first": (b" " + entry(), "does not begin with '{'"),
    "a list": (b'["w"]', "does not begin with '{'"),
    "an entry without its name": (json.dumps(W).encode(), "is the entry of one tensor, without its name"),
    "metadata as an entry": (entry()[:-1] + b',"__metadata__":%b}' % json.dumps(W).encode(), "does not map text to"),
    "a byte order mark": (b"\xef\xbb\xbf" + entry(), "does not begin with '{'"),
    "empty": (b"", "does not begin with '{'"),
    "no JSON": (b"{" + b"w" * 20, "not valid"),
    "two values": (entry() + b"{}", "not valid"),
    "invalid UTF-8": (entry().replace(b'"w"', b'"\xff"'), "not valid"),
    "UTF-16 surrogate in UTF-8": (entry().replace(b'"w"', b'"\xed\xa0\x80"'), "not valid"),
    "duplicate tensor": (b'{"w":%b,"w":%b}' % ((json.dumps(W).encode(),) * 2), "'w' stands twice"),
    "duplicate field": (entry().replace(b'"dtype"', b'"dtype": "F32", "dtype"', 1), "'dtype' stands twice"),
    "deep nesting": (b'{"w":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    "a constant": (entry().replace(b"8", b"NaN"), "NaN is not JSON"),
    "lone surrogate": (entry().replace(b'"w"', b'"\\ud800"'), r"'\ud800' is not valid text"),
    "no shape": (b'{"w":{"dtype":"F32","data_offsets":[0,8]}}', "'w' needs exactly"),
    "a field too many": (entry(strides=[1]), "'w' needs exactly"),
    "an entry that is a list": (b'{"w":[1]}', "'w' needs exactly"),
    "an entry that is null": (b'{"w":null}', "'w' needs exactly"),
    "negative size": (entry(shape=[-2]), "'w' has a shape or offsets that are not counts"),
    "negative offset": (entry(data_offsets=[-8, 0]), "not counts"),
    "minus zero": (entry(data_offsets=[0, 8]).replace(b"[0,", b"[-0,"), "-0 is no count"),
    "a boolean for a number": (entry(shape=[True, 2]), "not counts"),
    "a boolean for an offset": (entry(data_offsets=[False, 8]), "not counts"),
    "a float for a number": (entry(shape=[2.0]), "not counts"),
    "an exponent": (entry(shape=[2]).replace(b"[2]", b"[2e0]"), "not counts"),
    "text for a number": (entry(shape=["2"]), "not counts"),
    "shape that is no list": (entry(shape=2), "not counts"),
    "three offsets": (entry(data_offsets=[0, 4, 8]), "not counts"),
    "one offset": (entry(data_offsets=[0]), "not counts"),
    "beyond 64 bits": (entry(data_offsets=[0, 1 << 64]), "not counts"),
    "overflowing shape": (entry(shape=[1 << 32, 1 << 32]), "'w' is F32"),
    "65 dimensions": (entry(shape=[1] * 64 + [2]), "not counts"),
    "too small for its shape": (entry(shape=[3]), "'w' is F32 [3], 12 bytes, but has 8"),
    "too large for its shape": (entry(shape=[1]), "'w' is F32 [1], 4 bytes, but has 8"),
    "end before begin": (entry(shape=[0], data_offsets=[8, 0]), "but has -8"),
    "unknown dtype": (entry(dtype="F128"), "'w' has dtype F128, which is unknown"),
    "lower case dtype": (entry(dtype="f32"), "'w' has dtype f32, which is unknown"),
    "a dtype that is a list": (entry(dtype=["F32"]), "unknown"),
    "fp4, odd": (entry(dtype="F4", shape=[15]), "'w' is F4 [15], which is no whole number of bytes"),
    "fp6, odd": (entry(dtype="F6_E2M3", shape=[3]), "'w' is F6_E2M3 [3], which is no whole number of bytes"),
    "metadata of numbers": (entry()[:-1] + b',"__metadata__":{"step":3}}', "'__metadata__' does not map text to text"),
    "metadata as a list": (entry()[:-1] + b',"__metadata__":["a"]}', "'__metadata__' does not map text to text"),
    "a hole before": (entry(shape=[1], data_offsets=[4, 8]), "a hole before 'w', at byte 4"),
    "a hole between": (
        json.dumps({"w": W, "z": W | {"shape": [1], "data_offsets": [12, 16]}}).encode(),
        "a hole before 'z', at byte 12",
    ),
    "an overlap": (
        json.dumps({"w": W, "z": W | {"data_offsets": [4, 12]}}).encode(),
        "an overlap before 'z', at byte 4",
    ),
    "one range twice": (json.dumps({"w": W, "z": W}).encode(), "an overlap before 'z', at byte 0"),
    "bytes behind the last": (json.dumps({"w": ZERO}).encode(), "8 bytes follow the last tensor"),
    "nothing but bytes": (b"{}", "8 bytes follow the last tensor"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("label", BAD_HEADERS)
def test_a_header_that_breaks_a_rule_is_refused(label: str, tmp_path: Path) -> None:
    """A header that breaks one rule is refused with the file, and what is wrong, in one printable line."""
    header, message = BAD_HEADERS[label]
    error = refusal(raw(tmp_path / "bad.safetensors", header))
    assert type(error) is CheckpointError
    assert str(error).startswith(f"{tmp_path}/bad.safetensors: ")
    assert message in str(error)
    assert str(error).isprintable()


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"])
def test_8_bit_floats_are_described(dtype: str, tmp_path: Path) -> None:
    """A tensor that cannot be averaged can be read: to be looked at, and to be copied."""
    path = tmp_path / "a.safetensors"
    kinds = {"F8_E8M0": "float8_e8m0fnu", "F8_E4M3": "float8_e4m3fn"}
    torch_dtype = getattr(torch, kinds.get(dtype, dtype.lower().replace("f8", "float8")))
    tensor = torch.arange(4, dtype=torch.uint8).view(torch_dtype)
    save_file({"layer.weight": tensor}, path)
    weights = open_checkpoint(path).tensors
    assert str(weights.specs["layer.weight"]) == f"{dtype} [4]"
    assert read_all(weights) == {"layer.weight": b"\0\1\2\3"}


@pytest.mark.parametrize("length", [100_000_001, 1 << 40, (1 << 64) - 1])
def test_the_header_is_capped_before_it_is_read(length: int, tmp_path: Path) -> None:
    """A length beyond the official reader's cap is refused however large the file, reading nothing of it."""
    path = raw(tmp_path / "a.safetensors", b"{}", length=length)
    with path.open("r+b") as file:
        file.truncate(min(length + 8, 1 << 41))  # a sparse file: large enough for the header it claims
    assert f"a header of {length} bytes is no safetensors header" in str(refusal(path))


@pytest.mark.parametrize(
    ("name", "shown"),
    [("a\x1b[31mred", r"a\x1b[31mred"), ("new\nline", r"new\nline"), ("\u202etxt", r"\u202etxt"), ("\x00", r"\x00")],
)
def test_control_characters_in_names_are_shown_escaped(name: str, shown: str, tmp_path: Path) -> None:
    """A tensor's name cannot steer the terminal that shows the error about it."""
    header = json.dumps({name: W | {"shape": [3]}}).encode()
    error = refusal(raw(tmp_path / "a.safetensors", header))
    assert f"'{shown}' is F32 [3]" in str(error)
    assert str(error).isprintable()


def test_a_file_cut_anywhere_is_incomplete(tmp_path: Path) -> None:
    """Whatever the length it was cut to, a good file is said to be incomplete, not damaged."""
    whole = save({"b": torch.ones(3, 4), "w": torch.ones(7)}, metadata={"format": "pt"})
    path = tmp_path / "a.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        error = refusal(path)
        assert type(error) is IncompleteCheckpoint, length
        assert str(path) in str(error)


def test_bytes_that_follow_are_refused(tmp_path: Path) -> None:
    """One byte behind the last tensor is one too many."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(save({"w": torch.ones(7)}) + b"\0")
    assert str(refusal(path)) == f"{path}: 1 bytes follow the last tensor"


def test_equal_headers_are_parsed_once(tmp_path: Path) -> None:
    """Files with equal headers share their tables, and each is read from its own bytes."""
    options = ReadOptions()
    one = open_checkpoint(raw(tmp_path / "1.safetensors", entry(), b"abcdefgh"), options).tensors
    other = open_checkpoint(raw(tmp_path / "2.safetensors", entry(), b"ijklmnop"), options).tensors
    assert one.specs is other.specs
    assert (read_all(one), read_all(other)) == ({"w": b"abcdefgh"}, {"w": b"ijklmnop"})


def test_an_equal_header_in_a_file_of_another_size_is_no_excuse(tmp_path: Path) -> None:
    """What was read with a header does not make a file good that has the same header and other bytes behind it."""
    options = ReadOptions()
    good = open_checkpoint(raw(tmp_path / "good.safetensors", entry()), options)
    for number, beyond in enumerate((7, 9)):
        path = raw(tmp_path / f"{number}.safetensors", entry(), bytes(beyond))
        with pytest.raises(CheckpointError):
            open_checkpoint(path, options)
    assert type(refusal(raw(tmp_path / "short.safetensors", entry(), bytes(7)))) is IncompleteCheckpoint
    assert "1 bytes follow" in str(refusal(raw(tmp_path / "long.safetensors", entry(), bytes(9))))
    assert good.tensors.specs


def test_equal_specs_are_one_object(tmp_path: Path) -> None:
    """A hundred thousand tensors of a few shapes need a few specs."""
    path = tmp_path / "a.safetensors"
    save_file({f"{number}.weight": torch.zeros(number % 2 + 1) for number in range(10)}, path)
    assert len({id(spec) for spec in open_checkpoint(path).tensors.specs.values()}) == 2


def test_a_pickles_key_makes_no_sense_here(tmp_path: Path) -> None:
    """`--key` with a safetensors file is a usage error, not ignored."""
    path = raw(tmp_path / "a.safetensors", entry())
    error = refusal(path, ReadOptions(key="model"))
    assert type(error) is UsageError
    assert error.hint == "leave out key="


def test_own_averages_are_recognised(tmp_path: Path) -> None:
    """A file that ema-cli made says so, carries its recipe, and is taken for averages unless they are asked for."""
    path = tmp_path / "ema.safetensors"
    recipe = {"half_life": "50ba", "checkpoints": [["step-5", "5ba", 1.0]]}
    save_file({"w": torch.ones(1)}, path, metadata={"format": "pt", "ema_cli": json.dumps(recipe)})
    checkpoint = open_checkpoint(path)
    assert checkpoint.averaged == "ema-cli made it"
    assert checkpoint.mark == recipe
    again = open_checkpoint(path, ReadOptions(weights="ema"))
    assert (again.averaged, again.warnings) == (None, ("these are averages, which are averaged again",))
    plain = raw(tmp_path / "a.safetensors", entry())
    error = refusal(plain, ReadOptions(weights="ema"))
    assert (type(error), str(error)) == (NoSuchWeights, f"{plain}: holds no averages")


@pytest.mark.parametrize("recipe", ["", "[1]", "{", "[" * 100_000, "3"])
def test_a_recipe_nobody_understands_is_no_reason_to_fail(recipe: str, tmp_path: Path) -> None:
    """A damaged recipe still marks the file as an average, and reads as an empty one."""
    path = tmp_path / "ema.safetensors"
    save_file({"w": torch.ones(1)}, path, metadata={"ema_cli": recipe})
    checkpoint = open_checkpoint(path)
    assert (checkpoint.averaged, checkpoint.mark) == ("ema-cli made it", {})


def test_text_and_directories_are_told_apart_by_name(tmp_path: Path) -> None:
    """A suffix in capitals is a safetensors file; a folder with such a name is none."""
    assert open_checkpoint(raw(tmp_path / "A.SafeTensors", entry())).format == "safetensors"
    (tmp_path / "folder.safetensors").mkdir()
    assert "a folder without a checkpoint" in str(refusal(tmp_path / "folder.safetensors"))
