"""Distances between checkpoints, against float64 written otherwise: every byte once, any number of threads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ema_cli.cli.json_facts import comparison_facts
from ema_cli.comparing import distance
from ema_cli.comparing.comparison import Comparison, compare, measure_layers
from ema_cli.comparing.distance import Sums, comparable, measure
from ema_cli.comparing.layers import group_layers, layer_of, order_by_layer
from ema_cli.errors import CheckpointError, RunError
from tests.conftest import Outcome, write_hf_run, write_torch_run
from tests.folding.in_memory import checkpoint

Cli = Callable[..., Outcome]
Tensors = Mapping[str, torch.Tensor]


def model(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Return tensors of every kind, in three layers and more than one block."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)

    return {
        "layers.10.weight": normal(300, 333),
        "layers.2.weight": normal(40, 3),
        "layers.2.bias": normal(7, dtype=torch.bfloat16),
        "layers.2.half": normal(9, dtype=torch.float16),
        "embed.wide": normal(5, 5, dtype=torch.float64),
        "embed.waves": torch.view_as_complex(normal(6, 2, dtype=torch.float64)),
        "embed.scalar": normal(dtype=torch.float32),
        "embed.empty": torch.zeros(0, 3),
        "count": torch.tensor([seed, 1]),
        "mask": torch.tensor([True, False]),
    }


def flat(tensors: Tensors, names: list[str]) -> torch.Tensor:
    """Return the values of some tensors as one vector of float64, complex ones as pairs."""
    parts = []
    for name in names:
        tensor = tensors[name]
        tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        parts.append(tensor.double().flatten())
    return torch.cat(parts)


def check(found: distance.Distance | None, one: Tensors, other: Tensors, names: list[str]) -> None:
    """Compare a distance with what torch makes of the values, by the definitions."""
    assert found is not None
    mine, theirs = flat(one, names), flat(other, names)
    norm = torch.linalg.vector_norm
    assert found.distance == pytest.approx(norm(mine - theirs).item(), rel=1e-13)
    assert found.norm_one == pytest.approx(norm(mine).item(), rel=1e-13)
    assert found.norm_other == pytest.approx(norm(theirs).item(), rel=1e-13)
    assert found.relative == pytest.approx((norm(mine - theirs) / norm(theirs)).item(), rel=1e-13)
    cosine = torch.nn.functional.cosine_similarity(mine, theirs, dim=0).item()
    assert found.cosine == pytest.approx(cosine, abs=1e-13)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and stretches that a small tensor has many of."""
    monkeypatch.setattr(distance, "_BLOCK", 64)
    monkeypatch.setattr(distance, "_STRETCH", 640)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_distances_are_those_of_float64(dtype: torch.dtype):
    """Distance, norms, relative distance and cosine of each tensor, each layer and the whole are what float64 gives."""
    one, other = model(1, dtype), model(2)
    found = compare(checkpoint(one), checkpoint(other))
    values = [name for name in one if name not in ("count", "mask", "embed.empty")]
    for each in found.tensors:
        if each.name in values:
            check(each.distance, one, other, [each.name])
            wide = torch.complex128 if one[each.name].is_complex() else torch.float64
            largest = (one[each.name].to(wide) - other[each.name].to(wide)).abs().max()
            assert each.distance.largest == pytest.approx(largest.item(), rel=1e-13)
    for layer, part in found.layers.items():
        if layer not in ("count", "mask"):
            check(part.distance, one, other, [name for name in values if layer_of(name) == layer])
    check(found.total.distance, one, other, values)
    assert found.total.distance.largest == max(each.distance.largest for each in found.tensors if each.distance)


def test_integers_are_compared_for_equality_only():
    """A counter that differs is told as not equal, and adds to no distance."""
    one, other = model(1), model(1)
    other["count"] = other["count"] + 1000
    found = compare(checkpoint(one), checkpoint(other))
    equal = {each.name: each.equal for each in found.tensors}
    assert [name for name, same in equal.items() if not same] == ["count"]
    assert (found.total.equal, found.total.tensors) == (9, 10)
    assert found.total.distance.distance == 0
    assert found.layers["count"].distance is None


def test_equal_to_the_byte_is_more_than_equal():
    """0.0 and -0.0 are at distance 0, and not equal to the byte; nor are equal numbers of two types."""
    zeros = {"a.weight": torch.zeros(3), "b.weight": torch.ones(2)}
    other = {"a.weight": -torch.zeros(3), "b.weight": torch.ones(2, dtype=torch.bfloat16)}
    found = compare(checkpoint(zeros), checkpoint(other))
    assert [(each.equal, each.distance.distance) for each in found.tensors] == [(False, 0), (False, 0)]


def test_the_number_of_threads_changes_no_bit(small_blocks: None):
    """One thread and seven give the same float64 numbers, in the same order."""
    one, others = checkpoint(model(1)), [checkpoint(model(seed)) for seed in (2, 3, 4)]
    names = comparable(one, others)

    def told(threads: int) -> list[object]:
        return [
            (tied, sums.squares.tolist(), sums.products.tolist(), sums.largest.tolist(), sums.equal.tolist())
            for tied, sums in measure(one, others, names, threads=threads)
        ]

    assert told(1) == told(7) == told(2)


def test_every_byte_is_read_once(small_blocks: None):
    """One pass over all checkpoints, however many there are; tied tensors are read once, and told under each name."""
    ties = {"layers.2.tied": "layers.2.weight"}
    tensors = [{**model(seed), "layers.2.tied": model(seed)["layers.2.weight"]} for seed in range(4)]
    one, *others = [checkpoint(each, ties=ties) for each in tensors]
    steps: list[tuple[int, int]] = []
    layers = order_by_layer(comparable(one, others))
    found = list(measure(one, others, list(layers), threads=3, report=lambda *step: steps.append(step)))
    assert ("layers.2.tied", "layers.2.weight") in [tied for tied, _ in found]
    for each in (one, *others):
        for name, reads in each.tensors.reads.items():
            assert (reads == (0 if name == "layers.2.weight" else 1)).all(), name
    assert (
        steps[-1][0]
        == steps[-1][1]
        == sum(int(r.sum()) for each in (one, *others) for r in each.tensors.reads.values())
    )


def test_many_are_measured_as_each_alone(small_blocks: None):
    """The distances of one from several, by layer and in total, are to the bit those of the comparisons one by one."""
    one, others = checkpoint(model(1)), [checkpoint(model(seed), f"step-{seed}") for seed in (2, 3)]
    layers = order_by_layer(comparable(one, others))
    total, parts = measure_layers(one, others, layers, threads=2)
    for at, other in enumerate(others):
        alone = compare(one, other)
        assert total[at] == alone.total.distance
        assert {name: part[at] for name, part in parts.items()} == {
            name: part.distance for name, part in alone.layers.items() if part.distance
        }


def compare_values(one: list[float], other: list[float]) -> Comparison:
    """Compare two tensors of float32."""
    return compare(*(checkpoint({"x.weight": torch.tensor(values, dtype=torch.float32)}) for values in (one, other)))


def test_nan_is_reported():
    """A NaN makes the distances NaN, is counted on its side, and is null in JSON with a warning beside it."""
    found = compare_values([math.nan, 1, 2], [0, 1, math.inf])
    assert found.total.not_finite == (1, 1)
    assert math.isnan(found.total.distance.distance)
    told = comparison_facts(found)
    assert told["total"]["relative_distance"] is None
    assert told["total"]["non_finite"] == {"a": 1, "b": 1}
    assert told["warnings"] == ["'x.weight' holds NaN or infinity: 1 in A, 1 in B"]


def test_infinities_that_both_have_do_not_count():
    """An attention mask of -inf in both is no difference; one in one of them only is."""
    found = compare_values([-math.inf, 3, 0], [-math.inf, 0, 4])
    assert found.total.distance.distance == 5
    assert found.total.distance.norm_one == 3
    assert found.total.not_finite == (0, 0)
    assert compare_values([-math.inf, 3], [math.inf, 3]).total.not_finite == (1, 1)


def test_what_is_no_number():
    """Relative to 0 there is no distance, but where both are 0; nothing has the direction of 0."""
    found = compare_values([1, 0], [0, 0]).total.distance
    assert (found.relative, found.cosine, found.distance) == (None, None, 1)
    assert compare_values([0, 0], [0, 0]).total.distance.relative == 0
    assert compare_values([1, 2], [-1, -2]).total.distance.cosine == pytest.approx(-1, abs=1e-15)


def test_what_cannot_be_compared_is_listed():
    """Names that only one has, other shapes and other kinds are told, and the rest is compared."""
    one, other = model(1), model(2)
    del one["mask"], other["embed.wide"]
    other["layers.2.bias"] = torch.zeros(8)
    other["count"] = torch.zeros(2)
    found = compare(checkpoint(one), checkpoint(other))
    assert (found.only_one, found.only_other) == (["embed.wide"], ["mask"])
    assert found.different == ["count", "layers.2.bias"]
    assert comparison_facts(found)["different"][1] == {"name": "layers.2.bias", "a": "BF16 [7]", "b": "F32 [8]"}
    assert found.total.tensors == 6


def test_nothing_to_compare_is_an_error():
    """Two models without a tensor in common do not fit together."""
    with pytest.raises(RunError, match="no tensor that can be compared") as caught:
        compare(checkpoint({"a": torch.zeros(2)}), checkpoint({"b": torch.zeros(2)}))
    assert caught.value.hint
    with pytest.raises(RunError, match=r"'a' is F32 \[2\], and F32 \[3\]"):
        compare(checkpoint({"a": torch.zeros(2)}), checkpoint({"a": torch.zeros(3)}))


def test_sums_of_nothing():
    """The sums of no tensor are zero, and all of it is equal."""
    assert Sums.zero(2).distances()[1].distance == 0
    assert Sums.zero(1).equal.all()


def test_a_read_that_fails_ends_it():
    """An error in a thread comes out, whatever the others do."""
    broken = checkpoint(model(1))
    broken.tensors.fails_at = "layers.10.weight"
    with pytest.raises(CheckpointError):
        compare(checkpoint(model(1)), broken, threads=3)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.3.mlp.up_proj.weight", "model.layers.3"),
        ("transformer.h.11.attn.c_attn.bias", "transformer.h.11"),
        ("model.layers.3.mlp.experts.7.w1.weight", "model.layers.3.mlp.experts.7"),
        ("model.embed_tokens.weight", "model.embed_tokens"),
        ("vision.tower.patch.proj.weight", "vision.tower"),
        ("lm_head.weight", "lm_head"),
        ("params.0", "params"),
        ("scale", "scale"),
    ],
)
def test_layers_by_name(name: str, layer: str):
    """A layer is the path of a module up to its last number, or the outer two parts of it."""
    assert layer_of(name) == layer


def test_many_layers_are_put_together():
    """Experts go into their block first; then neighbours, in natural order, none left out."""
    experts = [f"layers.{block}.experts.{number}.weight" for block in range(20) for number in range(30)]
    found, together = group_layers(experts, 20)
    assert together
    assert list(dict.fromkeys(found.values())) == [f"layers.{block}" for block in range(20)]
    found, _ = group_layers(experts, 8)
    labels = list(dict.fromkeys(found.values()))
    assert (len(labels), labels[0], labels[-1]) == (8, "layers.0 to 1", "layers.17 to 19")
    assert set(found) == set(experts)
    assert group_layers(["b.weight", "a.weight"], 2) == ({"a.weight": "a", "b.weight": "b"}, False)


def test_compare_on_the_command_line(cli: Cli, tmp_path: Path):
    """An average of ours and a checkpoint of another format are compared; numbers in JSON are those of float64."""
    saved = write_torch_run(tmp_path / "ckpts", [100, 200, 300])
    cli("average", "ckpts", "--half-life", "100ba", "-o", "out.safetensors")
    done = cli("compare", "out.safetensors", "ckpts/step-300.pt")
    assert (done.code, done.err) == (0, "")
    assert "3 tensors compared, 1 equal to the byte" in done.out
    assert [line.split()[0] for line in done.out.splitlines()[4:8]] == ["layer", "layer", "norm", "all"]
    told = cli("compare", "out.safetensors", "ckpts/step-300.pt", "--json", "--threads", "3").json
    assert (told["schema_version"], told["command"]) == (1, "compare")
    assert told == cli("compare", "out.safetensors", "ckpts/step-300.pt", "--json", "--threads", "1").json
    average = cli("inspect", "out.safetensors", "--json").json["tensors"]
    assert {each["name"] for each in told["tensors"]} == {each["name"] for each in average}
    first = cli("compare", "ckpts/step-100.pt", "ckpts/step-300.pt", "--json").json
    names = ["layer.weight", "layer.bias"]
    expected = torch.linalg.vector_norm(flat(saved[0], names) - flat(saved[2], names)).item()
    assert first["total"]["distance"] == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_fits(cli: Cli, tmp_path: Path, width: int):
    """In a terminal of 80 columns long names are folded; in one of 200 they are whole. No colour in a pipe."""
    long = "transformer.decoder.very_long_name_of_a_module_list.blocks.3"
    for number in (1, 2):
        save_file({f"{long}.weight": torch.full((3,), float(number))}, tmp_path / f"{number}.safetensors")
    done = cli("compare", "1.safetensors", "2.safetensors", env={"COLUMNS": str(width), "NO_COLOR": "1"})
    assert max(map(len, done.out.splitlines())) <= (width if width > 90 else 90)
    assert ("\x1b" in done.out, long in done.out) == (False, width == 200)


def test_compare_takes_folders_and_names_what_it_cannot(cli: Cli, tmp_path: Path):
    """A folder that is a checkpoint, or holds just one; of several, one is to be named; hostile names are escaped."""
    write_hf_run(tmp_path / "hf", [100, 200])
    write_torch_run(tmp_path / "one", [100])
    assert cli("compare", "hf/checkpoint-100", "one").code == 0
    done = cli("compare", "hf", "one")
    assert (done.code, "holds 2 checkpoints" in done.err) == (2, True)
    assert cli("compare", "nothing", "one").code == 2
    save_file({"other\x1b[31m": torch.zeros(1), "layer.bias": torch.zeros(4)}, tmp_path / "odd.safetensors")
    done = cli("compare", "odd.safetensors", "one")
    assert done.code == 0
    assert "only in A: 'other\\x1b[31m'" in done.out
    assert "only in B: 'layer.weight', 'norm.num_batches_tracked'" in done.out
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    assert cli("compare", "x.safetensors", "one", "--json").json["error"]["code"] == 4


def test_compare_of_raw_weights_with_their_averages(cli: Cli, tmp_path: Path):
    """A file that holds both is compared with itself by --weights, and --weights that neither has is refused."""
    raw, averages = {"layer.weight": torch.ones(2)}, {"layer.weight": torch.zeros(2)}
    torch.save({"state_dict": raw, "state_dict_ema": averages, "epoch": 1}, tmp_path / "both.pth.tar")
    save_file(averages, tmp_path / "plain.safetensors")
    assert cli("compare", "both.pth.tar", "plain.safetensors", "--json").json["total"]["equal"] == 0
    told = cli("compare", "both.pth.tar", "plain.safetensors", "--weights", "ema", "--json").json
    assert told["total"]["equal"] == 1
    assert cli("compare", "plain.safetensors", "plain.safetensors", "--weights", "ema").code == 4
