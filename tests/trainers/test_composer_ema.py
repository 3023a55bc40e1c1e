"""Our EMA in the place of Composer's, in trainings with its Trainer: against its own, and against float64 averages."""

from __future__ import annotations

import gc
import inspect
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, TensorDataset

from ema_cli.errors import RunError, UsageError
from tests.conftest import Cli
from tests.trainers.conftest import Tensors, assert_rounds, names, recurrence, require
from tests.trainers.ranks import launch
from tests.trainers.write_composer import BATCH, EPOCH_LENGTH, make_model

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("ignore")]

EPOCHS = 3
TRAINERS: list[Any] = []  # of the test that runs
STEPS = range(1, EPOCHS * EPOCH_LENGTH + 1)


@pytest.fixture(scope="module", autouse=True)
def composer() -> Iterator[None]:
    """Stand in for the client of its makers' platform, which Composer imports and does not need here."""
    require("composer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "mcli", types.ModuleType("mcli"))
        yield


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Close Composer's trainers, which leave temporary folders for Python to remove, and to warn of."""
    yield
    while TRAINERS:
        TRAINERS.pop().close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def make_theirs(*arguments: Any, **options: Any) -> Any:
    """Return Composer's own algorithm."""
    from composer.algorithms import EMA

    return EMA(*arguments, **options)


def make_ours(*arguments: Any, **options: Any) -> Any:
    """Return ours."""
    from ema_cli.integrations.composer import EMA

    return EMA(*arguments, **options)


def make_recorder() -> Any:
    """Return a callback that keeps the model as it is after each batch."""
    from composer import Callback

    class Recorder(Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.steps: dict[int, Tensors] = {}

        def batch_end(self, state: Any, logger: Any) -> None:
            self.steps[state.timestamp.batch.value] = copied(state.model)

    return Recorder()


def copied(model: Any) -> Tensors:
    """Return a model's tensors, as they are now."""
    return {name: each.detach().clone() for name, each in model.state_dict().items()}


def averaged(algorithm: Any) -> Tensors:
    """Return all that the first average of our algorithm is, in full precision."""
    state = algorithm.ema.state_dict()
    return {**next(iter(state["averages"].values())), **state["copied"]}


def assert_same(left: Tensors, right: Tensors) -> None:
    """Check that all tensors are the same bits."""
    assert sorted(left) == sorted(right)
    assert [name for name, each in left.items() if not torch.equal(each, right[name])] == []


def train(
    algorithm: Any, *callbacks: Any, dtype: torch.dtype = torch.float32, fits: bool = True, **options: Any
) -> Any:
    """Train three epochs of eight batches; return the trainer."""
    from composer import Trainer

    torch.manual_seed(0)
    model = make_model().to(dtype)
    inputs = torch.randn(EPOCH_LENGTH * BATCH, 5, dtype=dtype)
    loader = DataLoader(TensorDataset(inputs, (inputs.sum(dim=1) > 0).long()), batch_size=BATCH)
    options = {"max_duration": f"{EPOCHS}ep", "save_overwrite": True, **options}
    trainer = Trainer(
        model=model,
        train_dataloader=loader,
        eval_dataloader=loader,
        optimizers=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        algorithms=algorithm,
        callbacks=list(callbacks),
        device="cpu",
        precision="fp32",
        seed=1,
        progress_bar=False,
        **options,
    )
    TRAINERS.append(trainer)
    if fits:
        trainer.fit()
    return trainer


def load(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Return a checkpoint's model and its EMA's state."""
    state = torch.load(path, weights_only=False)["state"]
    return state["model"], dict(state["algorithms"])["EMA"]


def raw_of(state: dict[str, Any]) -> Tensors:
    """Return what an EMA's state keeps beside the model's."""
    return {**state["ema_model"]["named_parameters_dict"], **state["ema_model"]["named_buffers_dict"]}


def test_same_signature():
    """Names, order and defaults are Composer's; what is ours is given by name."""
    theirs, ours = (inspect.signature(type(make())) for make in (make_theirs, make_ours))
    given = [each for each in ours.parameters.values() if each.kind is not inspect.Parameter.KEYWORD_ONLY]
    assert [(each.name, each.default) for each in given] == [
        (each.name, each.default) for each in theirs.parameters.values()
    ]


@pytest.mark.parametrize(
    ("law", "save_interval"),
    [
        ({"half_life": "6ba", "update_interval": "2ba"}, "4ba"),
        ({"half_life": "20ba", "update_interval": "5ba"}, "3ba"),
        ({"half_life": "2ep"}, "1ep"),
        ({"half_life": None, "smoothing": 0.9, "update_interval": "1ba"}, "8ba"),
        ({"half_life": "6ba", "ema_start": "0.4dur"}, "5ba"),
        ({"half_life": "6ba", "ema_start": "1ep"}, "5ba"),
    ],
)
def test_files_are_as_composer_s(tmp_path: Path, law: dict[str, Any], save_interval: str):
    """Each checkpoint has the averages that Composer's EMA has, to 1e-6, and bit for bit the same training weights."""
    for name, make in (("theirs", make_theirs), ("ours", make_ours)):
        train(make(**law), save_folder=str(tmp_path / name), save_interval=save_interval, eval_interval="3ba")
    assert names(tmp_path / "theirs") == names(tmp_path / "ours")
    saved = sorted((tmp_path / "theirs").glob("ep*.pt"))
    assert len(saved) >= 3
    for path in saved:
        (their_model, theirs), (model, ours) = load(path), load(tmp_path / "ours" / path.name)
        assert list(model) == list(their_model)
        for name, tensor in their_model.items():
            if tensor.is_floating_point():
                torch.testing.assert_close(model[name], tensor, rtol=0, atol=1e-6, msg=f"{path.name}: {name}")
        assert ours["ema_weights_active"] is theirs["ema_weights_active"]
        assert ours["ema_started"] is theirs["ema_started"]
        if theirs["ema_started"]:
            # They have averaged the counter, too.
            counter = "net.1.num_batches_tracked"
            their_raw, raw = ({**raw_of(state), counter: None} for state in (theirs, ours))
            assert sorted(raw) == sorted(their_raw)
            assert [name for name in raw if name != counter and not torch.equal(raw[name], their_raw[name])] == []


@pytest.mark.parametrize(
    ("law", "clocks", "half_life", "interval"),
    [
        ({"half_life": "6ba", "update_interval": "2ba"}, STEPS, 6, 2),
        ({"half_life": "2ep"}, [step / EPOCH_LENGTH for step in STEPS], 2, 1),
        ({"half_life": "50sp", "update_interval": "8sp"}, [4 * step for step in STEPS], 50, 8),
        ({"half_life": "0ba"}, STEPS, 1e-9, 1),
        ({"half_life": "infba"}, STEPS, 1e99, 1),
    ],
)
def test_composer_s_average_is_the_recurrence_over_all_batches(
    law: dict[str, Any], clocks: list[float], half_life: float, interval: float
):
    """The average is the recurrence over all batches, at half-lives 0 and infinity as well, and in samples."""
    algorithm, recorder = make_ours(**law), make_recorder()
    train(algorithm, recorder, eval_interval="3ba")
    # As Composer counts: from clock 1 in batches and epochs.
    saved = [recorder.steps[step] for step in STEPS]
    exact = recurrence(saved, clocks, half_life, interval)
    assert_rounds(averaged(algorithm), exact)
    assert averaged(algorithm)["net.1.num_batches_tracked"] == max(STEPS)


def test_bf16_moves():
    """Of a model in bfloat16 the averages are in float32; Composer's own are rounded to bfloat16 at each update."""
    ours, theirs, recorder = make_ours("200ba"), make_theirs("200ba"), make_recorder()
    train(ours, recorder, dtype=torch.bfloat16)
    train(theirs, dtype=torch.bfloat16)
    exact = recurrence([recorder.steps[step] for step in STEPS], STEPS, 200)
    assert_rounds(averaged(ours), exact)
    name = "net.0.weight"
    off = theirs.ema_model.named_parameters_dict[name].double() - exact[name]
    assert off.abs().max() > 100 * (averaged(ours)[name].double() - exact[name]).abs().max()


def test_epoch_half_life_with_batch_saves(tmp_path: Path):
    """A half-life in epochs and saves in batches that meet an epoch's end leave the training what it is without EMA.

    In Composer's own the checkpoint of the last batch leaves averages in the model, which the update at the end of
    the epoch then exchanges with the training weights.
    """
    plain, recorder = train(None), make_recorder()
    algorithm = make_ours("1ep")
    trainer = train(algorithm, recorder, save_folder=str(tmp_path), save_interval="4ba", eval_interval="2ba")
    assert_same(copied(trainer.state.model), copied(plain.state.model))
    ends = [recorder.steps[step] for step in (8, 16, 24)]
    assert_rounds(averaged(algorithm), recurrence(ends, [1, 2, 3], 1))
    # An epoch's last batch is saved before its end: what was saved at batch 16 is the average of the first epoch.
    model, state = load(tmp_path / "ep1-ba16-rank0.pt")
    assert_rounds(model, recurrence(ends[:1], [1], 1))
    assert_same(raw_of(state), recorder.steps[16])


def test_evaluation(tmp_path: Path):
    """Evaluation sees the averages, the next batch the training weights, also where an evaluation has raised."""
    from composer import Callback

    class Look(Callback):  # type: ignore[misc]
        seen: list[Tensors] = []
        raises = False

        def eval_batch_end(self, state: Any, logger: Any) -> None:
            self.seen.append(copied(state.model))
            if self.raises:
                raise ZeroDivisionError

        def batch_start(self, state: Any, logger: Any) -> None:
            assert not algorithm.ema_weights_active

    algorithm, recorder, look = make_ours("6ba"), make_recorder(), Look()
    trainer = train(algorithm, recorder, look, eval_interval="8ba", save_folder=str(tmp_path), save_interval="8ba")
    assert len(look.seen) == 3 * EPOCH_LENGTH
    for number, step in enumerate((8, 16, 24)):
        exact = recurrence([recorder.steps[each] for each in range(1, step + 1)], range(1, step + 1), 6)
        assert_rounds(look.seen[number * EPOCH_LENGTH], exact)
    last = recorder.steps[24]
    assert_same(copied(trainer.state.model), last)
    look.raises = True
    with pytest.raises(ZeroDivisionError):
        trainer.eval()
    assert algorithm.ema_weights_active
    look.raises = False
    trainer.fit(duration="1ba")
    exact = recurrence([recorder.steps[each] for each in range(1, 26)], range(1, 26), 6)
    assert_rounds(averaged(algorithm), exact)
    assert not algorithm.ema_weights_active


def test_get_models():
    """get_ema_model fills a model with the averages; get_training_model is for when they are in the model."""
    algorithm = make_ours("6ba")
    trainer = train(algorithm)
    assert_same(copied(algorithm.get_ema_model(make_model())), averaged(algorithm))
    with pytest.raises(UsageError):
        algorithm.get_training_model(make_model())
    training = copied(trainer.state.model)
    assert_same(copied(algorithm.get_ema_model(trainer.state.model)), averaged(algorithm))
    assert training.keys() == averaged(algorithm).keys()


@pytest.mark.parametrize(
    ("stop", "law", "dtype"),
    [
        (5, {"half_life": "6ba", "update_interval": "2ba"}, torch.float32),
        (8, {"half_life": "6ba", "ema_start": "0.2dur"}, torch.bfloat16),
        (11, {"half_life": ("4ba", "20ba")}, torch.bfloat16),
        (8, {"half_life": "1ep"}, torch.float32),
        (11, {"half_life": "1ep"}, torch.float32),
    ],
)
def test_a_resumed_composer_training_gives_the_same_bits(
    tmp_path: Path, stop: int, law: dict[str, Any], dtype: torch.dtype
):
    """A training that is resumed from a checkpoint gives the same bits as one without a stop."""
    whole, resumed = make_ours(**law), make_ours(**law)
    first = train(whole, dtype=dtype)
    train(
        make_ours(**law), dtype=dtype, max_duration=f"{EPOCHS}ep", save_folder=str(tmp_path), save_interval=f"{stop}ba"
    )
    (path,) = tmp_path.glob(f"ep*-ba{stop}-rank0.pt")
    trainer = train(resumed, dtype=dtype, load_path=str(path))
    assert_same(copied(trainer.state.model), copied(first.state.model))
    for name, tensors in whole.ema.state_dict()["averages"].items():
        assert_same(resumed.ema.state_dict()["averages"][name], tensors)
    assert_same(resumed.ema.state_dict()["copied"], whole.ema.state_dict()["copied"])
    assert (resumed.ema.clock, resumed.ema.updates) == (whole.ema.clock, whole.ema.updates)


def test_evaluation_of_what_is_loaded(tmp_path: Path):
    """Evaluation before anything is trained is of the averages that were loaded, and leaves the training weights."""
    recorder = make_recorder()
    train(make_ours("6ba"), recorder, save_folder=str(tmp_path), save_interval="11ba")
    algorithm = make_ours("6ba")
    trainer = train(algorithm, fits=False, load_path=str(tmp_path / "ep1-ba11-rank0.pt"))
    assert_same(copied(trainer.state.model), recorder.steps[11])
    trainer.eval()
    assert_same(copied(trainer.state.model), recorder.steps[11])
    exact = recurrence([recorder.steps[step] for step in range(1, 12)], range(1, 12), 6)
    assert_rounds(averaged(algorithm), exact)


def test_another_half_life_on_resume(tmp_path: Path):
    """A resumed training with another half-life is an error, unless that is meant; Composer's own state is one, too."""
    train(make_ours("6ba"), save_folder=str(tmp_path / "ours"), save_interval="11ba")
    path = str(tmp_path / "ours" / "ep1-ba11-rank0.pt")
    with pytest.raises(RunError, match="is of 6ba every 1ba"):
        train(make_ours("7ba"), load_path=path)
    train(make_ours("7ba", change_half_life=True), load_path=path)
    train(make_theirs("6ba"), save_folder=str(tmp_path / "theirs"), save_interval="11ba")
    with pytest.raises(RunError, match="Composer's own EMA"):
        train(make_ours("6ba"), load_path=str(tmp_path / "theirs" / "ep1-ba11-rank0.pt"))


def test_composer_s_own_goes_on(tmp_path: Path):
    """Composer's own EMA resumes from our file, to the same values as from its own."""
    for name, make in (("theirs", make_theirs), ("ours", make_ours)):
        train(make("6ba"), save_folder=str(tmp_path / name), save_interval="11ba")
    ends = []
    for name in ("theirs", "ours"):
        algorithm = make_theirs("6ba")
        train(algorithm, load_path=str(tmp_path / name / "ep1-ba11-rank0.pt"))
        ends.append(algorithm.ema_model.named_parameters_dict)
    for name, tensor in ends[0].items():
        torch.testing.assert_close(ends[1][name], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("choice", ["raw", "ema"])
def test_ema_cli_reads_the_files(cli: Cli, tmp_path: Path, choice: str):
    """`ema-cli average` refuses the averages in our files, and takes either set of weights where asked to."""
    recorder = make_recorder()
    trainer = train(make_ours("6ba"), recorder, save_folder=str(tmp_path / "run"), save_interval="4ba")
    done = cli("average", "run", "--half-life", "6ba")
    assert (done.code, "Composer's EMA was on" in done.err) == (4, True), done
    assert cli("average", "run", "--half-life", "6ba", "--weights", choice, "-o", "out.safetensors").code == 0
    clocks = range(4, 25, 4)
    saved = [recorder.steps[step] for step in clocks]
    if choice == "ema":
        saved = [
            load(path)[0]
            for path in sorted((tmp_path / "run").glob("ep*.pt"), key=lambda path: path.stat().st_mtime_ns)
        ]
    assert_rounds(load_file(tmp_path / "out.safetensors"), recurrence(saved, clocks, 6))
    # Saved by hand, the training weights are in the usual place, and the averages beside them.
    trainer.save_checkpoint(str(tmp_path / "hand" / "ep3-ba24-rank{rank}.pt"))
    model, state = load(tmp_path / "hand" / "ep3-ba24-rank0.pt")
    assert state["ema_weights_active"] is False
    assert_same(model, recorder.steps[24])
    assert_rounds(raw_of(state), recurrence([recorder.steps[step] for step in STEPS], STEPS, 6))


def test_several_are_stored(tmp_path: Path):
    """Several averages are stored beside the checkpoints, each as it was then."""
    recorder = make_recorder()
    train(make_ours(("4ba", "16ba")), recorder, save_folder=str(tmp_path), save_interval="8ba")
    assert names(tmp_path / "ema") == {"first.safetensors", "8ba", "16ba", "24ba"}
    for step in (8, 24):
        saved = [recorder.steps[each] for each in range(1, step + 1)]
        for name, half_life in (("4ba", 4), ("16ba", 16)):
            written = load_file(tmp_path / "ema" / f"{step}ba" / f"{name}.safetensors")
            assert_rounds(written, recurrence(saved, range(1, step + 1), half_life))


def test_train_with_ema_weights():
    """With train_with_ema_weights each update puts the average into the model."""
    algorithm = make_ours("6ba", train_with_ema_weights=True)
    trainer = train(algorithm)
    assert_same(copied(trainer.state.model), averaged(algorithm))


def test_arguments_that_make_no_sense_are_refused_when_composer_s_ema_is_made():
    """What makes no sense is an error at once; smoothing alone is enough."""
    for arguments in (
        {"half_life": None},
        {"half_life": "50ba", "smoothing": 0.9},
        {"half_life": "-5ba"},
        {"half_life": "2ep", "update_interval": "10ba"},
        {"update_interval": "0ba"},
        {"smoothing": 5.0},
        {"ema_start": "1.5dur"},
        {"ema_start": "xdur"},
        {"ema_start": "5"},
    ):
        with pytest.raises(UsageError):
            make_ours(**arguments)
    assert list(make_ours(smoothing=0.9).arguments.tracks.laws) == ["smoothing-0.9"]
    assert list(make_ours().arguments.tracks.laws) == ["1000ba"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "fsdp2, saved whole"])
def test_two_processes(cli: Cli, tmp_path: Path, strategy: str):
    """In two processes averages, files and a resumed training are what they are in one."""
    folder = launch("write_composer_ema", tmp_path / "written", strategy)
    saved = [load_file(folder / "truth" / f"{step}.safetensors") for step in range(1, 17)]
    whole, resumed = (load_file(folder / f"{name}.safetensors") for name in ("whole", "resumed"))
    assert_rounds(whole, recurrence(saved, range(1, 17), 6, 2))
    assert_same(whole, resumed)
    models = [load_file(folder / f"{name}-model.safetensors") for name in ("whole", "resumed")]
    assert_same(models[0], models[1])
    assert_same(models[0], saved[-1])
    at_stop = recurrence(saved[:11], range(1, 12), 6, 2)
    assert_rounds(load_file(folder / "stored" / "10ba" / "6ba.safetensors"), at_stop)
    done = cli("average", folder / "run", "--half-life", "0ba", "--stop", "11ba")
    assert (done.code, "Composer's EMA was on" in done.err) == (4, True), done
    assert cli("average", folder / "run", "--half-life", "0ba", "--stop", "11ba", "--weights", "ema").code == 0
    assert_rounds(load_file(tmp_path / "ema-0ba.safetensors"), at_stop)


def test_importing_the_package_imports_no_composer():
    """`import ema_cli` loads no Composer."""
    code = "import sys, ema_cli; ema_cli.EMA; sys.exit('composer' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
