"""Archives of stable-baselines3: the policy is read where it lies, its clock from the JSON beside it."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest
import torch

from ema_cli.errors import CheckpointError, NoWeights
from ema_cli.formats import open_checkpoint
from ema_cli.law.time import Unit
from tests.conftest import Cli
from tests.formats.reading import read_all

NUMBER = {"num_timesteps": 128, "_n_updates": 10, "gamma": 0.99, "policy_class": {":serialized:": "gASVCgAAAAAAAAA="}}


def saved(value: object) -> bytes:
    """Return what torch saves."""
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def model(path: Path, method: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    """Write an archive as stable-baselines3 does, with other members in the place of its own."""
    own = {
        "data": json.dumps(NUMBER).encode(),
        "policy.pth": saved({"net.weight": torch.arange(6.0)}),
        "policy.optimizer.pth": saved({"state": {}, "param_groups": []}),
        "_stable_baselines3_version": b"2.9.2",
    }
    renamed = {name.replace("__", "."): content for name, content in members.items()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in {**own, **renamed}.items():
            archive.writestr(name, content)
    return path


def test_the_policy_is_read_where_it_lies(tmp_path: Path) -> None:
    """Its clock is the number of steps of the environments; what is pickled beside it is not looked at."""
    checkpoint = open_checkpoint(model(tmp_path / "a.zip", pytorch_variables__pth=b"no pickle at all"))
    assert read_all(checkpoint.tensors) == {"net.weight": torch.arange(6.0).numpy().tobytes()}
    assert (checkpoint.trainer, checkpoint.clock(Unit.SAMPLE)) == ("stable-baselines3", 128)
    assert checkpoint.format == "stable-baselines3 zip"


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"data": b"{"}, "'data' in it is not valid JSON"),
        ({"data": b'{"a": 1, "a": 2}'}, "stands twice"),
        ({"data": b"[" * 100_000}, "not valid JSON"),
        ({"policy__pth": b"text"}, "'policy.pth' in it: "),
        ({"policy__pth": saved({"w": torch.ones(2)})[:-100]}, "'policy.pth' in it: "),
    ],
)
def test_what_is_damaged_inside_is_one_error(members: dict[str, bytes], says: str, tmp_path: Path) -> None:
    """It names the archive, and the member of it."""
    path = model(tmp_path / "a.zip", **members)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert says in str(caught.value)


def test_a_packed_archive_is_refused(tmp_path: Path) -> None:
    """Compressed, the policy has no ranges; and another archive is no model."""
    with pytest.raises(CheckpointError, match="is compressed or missing") as caught:
        open_checkpoint(model(tmp_path / "a.zip", zipfile.ZIP_DEFLATED))
    assert "save it again" in (caught.value.hint or "")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("main.py", "print()")
    with pytest.raises(NoWeights, match="not one that stable-baselines3 wrote"):
        open_checkpoint(tmp_path / "b.zip")


def test_another_archive_beside_a_run_is_no_matter(cli: Cli, tmp_path: Path) -> None:
    """Source text in a zip file is listed by inspect, and no warning; the run is averaged, and checked."""
    for steps in (64, 128, 192):
        data = json.dumps({**NUMBER, "num_timesteps": steps}).encode()
        model(tmp_path / f"rl_model_{steps}_steps.zip", data=data)
    with zipfile.ZipFile(tmp_path / "code.zip", "w") as archive:
        archive.writestr("main.py", "print()")
    assert cli("average", ".", "--half-life", "64sp", "-o", "out.safetensors", "--strict").code == 0
    assert cli("verify", "out.safetensors", "--against", ".").code == 0
    assert cli("average", ".", "--half-life", "1ba", "--clock-key", "_n_updates=ba", "--dry-run").code == 0
    asked = cli("average", ".", "--half-life", "1ba")
    assert (asked.code, "count in samples: --half-life 128sp" in asked.err) == (4, True), asked
    shown = cli("inspect", ".", "--json").json["run"]["passed_over"]
    assert ("code.zip", "a zip archive without weights") in [(each["name"], each["reason"]) for each in shown]
