"""What `--on` names: no engine, no address, or nobody who answers is an error in words, before long."""

from __future__ import annotations

import re
import socket
from concurrent.futures import CancelledError
from types import SimpleNamespace

import pytest

from ema_cli.engines import ray_cluster
from ema_cli.engines.engine import EngineError, Loss
from ema_cli.engines.opening import open_engine
from ema_cli.errors import UsageError
from ema_cli.system.processors import default_threads


def test_a_scheduler_that_is_not_there():
    """An error that says how to start one, after a while."""
    pytest.importorskip("distributed")
    from ema_cli.engines import dask_cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dask_cluster, "_CONNECT_SECONDS", 1)
        with pytest.raises(EngineError, match="does not answer"), open_engine("dask://127.0.0.1:9"):
            pass


def test_what_is_no_address_for_dask():
    """Its own words, and how one looks."""
    pytest.importorskip("distributed")
    with pytest.raises(UsageError, match=re.escape("'dask://a:b:c': invalid address")), open_engine("dask://a:b:c"):
        pass


def test_a_task_that_dask_gave_to_worker_after_worker():
    """Its own setting says to how many; each of them counts, and the last one is named."""
    distributed = pytest.importorskip("distributed")
    from ema_cli.engines.dask_cluster import _loss

    worker = SimpleNamespace(address="tcp://127.0.0.1:34567")
    lost = _loss(distributed.scheduler.KilledWorker("task", worker, allowed_failures=3))
    assert lost == Loss("tcp://127.0.0.1:34567", 4)
    assert _loss(CancelledError()) == Loss("", 1)
    assert _loss(ValueError()) is None


@pytest.mark.parametrize("number", [1, 2, 5])
def test_the_processors_of_this_machine_are_divided(number: int):
    """Among the processes that work on it; each has one thread at least."""
    with open_engine(f"processes={number}") as engine:
        assert engine.threads == max(1, default_threads() // number)
        assert engine.is_here


def test_a_cluster_of_ray_that_is_gone(monkeypatch: pytest.MonkeyPatch):
    """Ray would wait for minutes at the address of the last one; another version of Ray says itself what it finds."""
    closed = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{closed.getsockname()[1]}"
    services = SimpleNamespace(canonicalize_bootstrap_address=lambda name: address)
    monkeypatch.setattr(ray_cluster, "import_module", lambda name: services)
    ray_cluster._check_answers("ray:auto")
    closed.close()
    with pytest.raises(EngineError, match=f"no cluster answers at {address}") as caught:
        ray_cluster._check_answers("ray:auto")
    assert caught.value.hint == "start one: ray start --head"
    monkeypatch.setattr(ray_cluster, "import_module", lambda name: SimpleNamespace())
    ray_cluster._check_answers("ray:auto")


@pytest.mark.parametrize("name", ["dask:local=0", "processes=", "spark://x", "dask://", "local"])
def test_what_is_no_engine(name: str):
    """An error that names all that there are."""
    with pytest.raises(UsageError, match="is no engine") as caught:
        open_engine(name)
    assert "dask://HOST:8786" in str(caught.value.hint)
