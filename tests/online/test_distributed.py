"""Two processes that train one model, in DDP or cut by FSDP2: the averages are those of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch import nn

from ema_cli import EMA
from tests.online.models import assert_near, assert_same, held, walk
from tests.online.two_processes import ASKED, launch, make_model

pytestmark = pytest.mark.slow

TRACKS = ("3ba", "20ba")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run both processes once."""
    return launch(tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    """What each of them found."""
    return [torch.load(folder / f"found-{rank}.pt", weights_only=True) for rank in (0, 1)]


def assert_states_near(state: dict[str, Any], expected: dict[str, Any]) -> None:
    assert set(state) == set(expected)
    for name, tensors in state.items():
        assert_near(tensors, expected[name])


def test_sharded_averages_are_those_of_one_process(found: list[dict[str, Any]]):
    """Cut by FSDP2, unevenly too, put together again: each average to float32 rounding, and the first copy."""
    for each in found:
        assert_states_near(each["sharded"]["state"], each["alone"]["state"])
    rows = [each["sharded"]["rows"] for each in found]
    assert (rows[0]["1.weight"], rows[1]["1.weight"]) == (4, 3)
    assert (rows[0]["3.weight"], rows[1]["3.weight"]) == (1, 0)


def test_an_update_communicates_nothing(found: list[dict[str, Any]]):
    """No collective is called in any update, with FSDP2 and DDP."""
    for each in found:
        assert each["sharded"]["events"] == 6
        assert each["sharded"]["communicated"] == 0
        assert each["ddp"]["communicated"] == 0


def test_all_processes_call_a_branch_the_same(found: list[dict[str, Any]]):
    """Whichever process saves the state or stores an average, the start and the resume have one name in all of them."""
    one, other = (each["sharded"]["branches"] for each in found)
    assert one == other
    (start,), (past, resume) = one
    assert past == start != resume


def test_two_processes_load_what_two_saved(found: list[dict[str, Any]]):
    """torch.distributed.checkpoint saves the state and loads it into a new run, which goes on with the same bits."""
    for each in found:
        sharded = each["sharded"]
        assert sharded["clocks"] == ["6ba", "6ba", 5, 5, "1"]
        for before, after in (("state", "loaded"), ("went on", "went on again")):
            assert set(sharded[before]) == set(sharded[after]) == {*TRACKS, "copied", "first"}
            for name, tensors in sharded[before].items():
                assert_same(sharded[after][name], tensors)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_one_process_loads_what_two_saved(folder: Path, found: list[dict[str, Any]]):
    """The same files load in one process, whole."""
    ema = EMA(make_model(), **ASKED)
    ema.update()
    loaded = {"ema": ema.state_dict()}
    dcp.load(loaded, checkpoint_id=folder / "dcp", no_dist=True)
    ema.load_state_dict(loaded["ema"])
    state = ema.state_dict()
    expected = found[0]["sharded"]["state"]
    for name in TRACKS:
        assert_same(state["averages"][name], expected[name])
    assert_same(state["copied"], expected["copied"])
    assert_same(state["first"], expected["first"])
    assert (str(ema.clock), ema.updates) == ("6ba", 5)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("started", [False, True])
def test_a_new_run_loads_the_state(tmp_path: Path, started: bool):
    """In one process, without buffers: a state that has not begun takes all of one that has, and vice versa."""
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    ema, again = EMA(model, "3ba"), EMA(other, "3ba")
    (ema if started else again).update(batch=2, epoch=0.5)
    dcp.save({"ema": ema.state_dict()}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    loaded = {"ema": again.state_dict()}
    dcp.load(loaded, checkpoint_id=tmp_path / "dcp", no_dist=True)
    again.load_state_dict(loaded["ema"])
    assert (again.averages.clocks, again.clock, again.averages.began) == (
        ema.averages.clocks,
        ema.clock,
        ema.averages.began,
    )
    other.load_state_dict(model.state_dict())
    for step in range(3, 6):
        walk(model, step)()
        walk(other, step)()
        assert ema.update(batch=step) is again.update(batch=step) is True
    assert_same(held(again), held(ema))


def test_a_first_copy_is_not_lost_without_a_word(found: list[dict[str, Any]]):
    """A new state without a place for the first copy does not load one that has it."""
    for each in found:
        assert "first" in each["sharded"]["lost"]


def test_applied_under_fsdp2(found: list[dict[str, Any]]):
    """Forward passes inside use the averages and afterwards the training weights, whatever they leave gathered."""
    for each in found:
        for gathered in (False, True):
            used, alone = each["used"][f"gathered {gathered}"], each["alone"]
            assert (used["before"] - alone["averaged"]).abs().max() > 1e-3
            for output in (*used["inside"], used["alone"]):
                torch.testing.assert_close(output, alone["averaged"], rtol=0, atol=1e-6)
            torch.testing.assert_close(used["before"], alone["trained"], rtol=0, atol=1e-6)
            assert torch.equal(used["after"], used["before"])
            assert used["updated"]


def test_every_way_of_averaging_a_sharded_model(found: list[dict[str, Any]]):
    """On the host and under torch.compile the bits are the same; training on the averages is that of one process."""
    for each in found:
        varied = each["varied"]
        for name in (*TRACKS, "copied", "first"):
            assert_same(varied["host"][name], varied["beside"][name])
            assert_same(varied["compiled"][name], varied["beside"][name])
        assert_near(varied["trained on, sharded"], varied["trained on, alone"])


def test_fsdp1_is_refused(found: list[dict[str, Any]]):
    """What the older FullyShardedDataParallel flattens has no tensor of the model's, and the error says so."""
    for each in found:
        assert each["varied"]["fsdp1"] == "the model is in FullyShardedDataParallel, which flattens tensors"


def test_two_processes_save_one_file(folder: Path, found: list[dict[str, Any]]):
    """save and store from both processes write one file each, with the whole tensors, the frozen ones too."""
    alone = found[0]["alone"]["state"]
    expected = {**alone["3ba"], **alone["copied"], **{
        name: tensor for name, tensor in make_model().state_dict().items() if name.startswith("0.")
    }}  # fmt: skip
    assert_near(load_file(folder / "sharded.safetensors"), expected)
    assert_near(load_file(folder / "ddp.safetensors"), expected)
    assert [each["saved"]["stored"] for each in found] == [str(folder / "stored" / "6ba")] * 2
    assert_near(load_file(folder / "stored" / "6ba" / "3ba.safetensors"), expected)
    first = {**expected, **alone["first"]}
    assert_near(load_file(folder / "stored" / "first.safetensors"), first)
    assert not list(folder.rglob(".ema-cli-*"))


def test_an_error_in_one_process_is_one_in_both(folder: Path, found: list[dict[str, Any]]):
    """A file that exists, a place that is none, a NaN in one part: both processes say so, and neither waits."""
    for each in found:
        assert "sharded.safetensors: exists already" in each["saved"]["exists"]
        assert "cannot be written" in each["saved"]["no folder"]
        assert "cannot be written" in each["saved"]["no store"]
        assert "'1.weight' is not finite" in each["saved"]["not finite"]
        assert each["saved"]["allowed"] == "no error"
    assert load_file(folder / "nan.safetensors")["1.weight"].isnan().sum() == 1


def test_ddp_averages_are_those_of_one_process(found: list[dict[str, Any]]):
    """In DDP each process has the average, under the names of the bare model; applied() reaches the model inside."""
    for each in found:
        assert_states_near(each["ddp"]["state"], each["alone"]["state"])
        torch.testing.assert_close(each["ddp"]["averaged"], each["alone"]["averaged"], rtol=0, atol=1e-6)
