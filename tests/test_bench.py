"""The benchmark measures what it says. How fast anything is, no test asks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from scripts.benchmark import commands, compare, datasets, figures, following, measure, memory, rounds, rows, values
from scripts.benchmark.peer_loops import LOOPS, load
from scripts.benchmark.slow_disk import SlowDisk
from tests.formats.dcp_folders import load_folder

ROOT = Path(__file__).parents[1]
QUIET = {"foreign_cpu": 0.0, "foreign_disk": 0, "cores": 2}
MICRO = datasets.sets_at("micro")


def taken(noisy: bool = False, **walls: float) -> dict[str, Any]:
    """Return a round in which each took so long."""
    reasons = {"others": "busy"} if noisy else {}
    return {"noisy": reasons, "runs": {name: {"wall": wall, "cpu": 1.0} for name, wall in walls.items()}}


@dataclass(frozen=True)
class GivenRun:
    """A run that was not made."""

    facts: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return it as it is."""
        return self.facts


def test_ratios_are_of_one_round_and_noisy_rounds_do_not_count():
    """Of 1/2, 3/4 and 4/4 the median is 0.75, whatever the medians of the times; a noisy round changes nothing."""
    found = [taken(us=1, them=2), taken(us=3, them=4), taken(us=4, them=4)]
    noisy = [taken(True, us=100, them=1), *found, taken(True, us=0.001, them=1)]
    expected = figures.Figure(0.75, 0.5, 1.0, 3)
    assert figures.ratio(found, "us", "them") == figures.ratio(noisy, "us", "them") == expected
    assert figures.values(noisy, "us", "wall") == figures.Figure(3, 1, 4, 3)


def test_who_failed_in_a_round_is_not_paired_in_it():
    """A round that lacks one of two gives no ratio, and no figure where nothing is left."""
    found = [taken(us=1, them=2), taken(us=1)]
    assert figures.ratio(found, "us", "them") == figures.Figure(0.5, 0.5, 0.5, 1)
    assert figures.ratio(found, "us", "nobody") is None
    assert figures.values([taken(True, us=1)], "us", "wall") is None


def test_a_target_is_judged_against_the_best_of_its_rivals():
    """The best peer is the one with the lowest median; memory and unmeasured targets have verdicts, too."""
    target = {"of": "ema-cli", "against": ["naive", "timm"], "at_most": 0.5, "words": "<= 0.5 x best peer"}
    row = {
        "targets": [target, {**target, "against": ["mergekit"]}],
        "rounds": [taken(**{"ema-cli": 1, "naive": 10, "timm": 1.5})],
        "memory": {"ema-cli": {"together": 100 << 20}},
        "memory_limit": 99 << 20,
        "labels": {},
    }
    peers, nobody, taken_memory = figures.judge(row)
    assert (peers.measured, peers.met) == ("0.67 (timm)", False)
    assert nobody.met is None
    assert (taken_memory.measured, taken_memory.met) == ("100 MiB", False)


def test_who_is_not_there_is_not_too_noisy():
    """Without another build, its target is not measured; where it ran in noisy rounds, these are why."""
    target = {"of": "ema-cli", "against": ["before"], "at_most": 0.4, "words": rows.Target("", ("before",), 0.4).words}
    row = {"targets": [target], "rounds": [taken(**{"ema-cli": 1})], "memory": {}, "memory_limit": None, "labels": {}}
    assert figures.judge(row) == [figures.Verdict("<= 0.4 x the build before", "not measured", None)]
    (noisy,) = figures.judge({**row, "rounds": [taken(True, **{"ema-cli": 1, "before": 2})]})
    assert noisy.measured == "too noisy"


@pytest.mark.parametrize(
    ("facts", "counts"),
    [
        ({"wall": 10, "foreign_cpu": 1.9}, True),
        ({"wall": 10, "foreign_cpu": 2.1}, False),
        ({"wall": 0.01, "foreign_cpu": 0.04}, True),  # within the precision of the kernel's ticks
        ({"wall": 10, "foreign_disk": 2 << 30}, False),
    ],
)
def test_a_run_is_noisy_where_others_take_a_tenth_of_the_machine(facts: dict[str, Any], counts: bool):
    """Ten seconds of two processors are twenty; a tenth of that is two."""
    assert (measure.noise({**QUIET, **facts}) is None) == counts


def test_noisy_rounds_are_repeated_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Three quiet rounds are wanted: one noisy one costs a fourth; where all are noisy, six are enough."""
    monkeypatch.setattr(rounds.time, "sleep", lambda seconds: None)
    command = measure.Command(("true",), {}, tmp_path / "out", tmp_path / "log")

    def measured(noisy: set[int]) -> list[bool]:
        calls = iter(range(100))

        def run(command: measure.Command) -> GivenRun:
            return GivenRun({**QUIET, "wall": 1.0, "foreign_cpu": 1.5 * (next(calls) in noisy)})

        found = rounds.measure({"one": command}, 3, lambda: None, {}, 6, run)
        return [bool(each["noisy"]) for each in found]

    assert measured(set()) == [False] * 3
    assert measured({1}) == [False, True, False, False]
    assert measured(set(range(100))) == [True] * 6


def test_several_outputs_are_all_there_and_one_is_found(tmp_path: Path):
    """By its half-life, which others may end with; one too few is an error."""
    names = ["ema-50ba", "ema-150ba", "ema-400ba"]
    for name in names:
        (tmp_path / f"{name}.safetensors").touch()
    assert rounds.find_output(tmp_path, ["150ba", "400ba", "50ba"]).stem == "ema-50ba"
    with pytest.raises(measure.RunError, match=r"^4 outputs were asked for, and these are there: \["):
        rounds.find_output(tmp_path, ["25ba", "50ba", "150ba", "400ba"])


def test_the_order_rotates():
    """Each goes first once."""
    assert [rounds.rotated(["a", "b", "c"], by)[0] for by in range(4)] == ["a", "b", "c", "a"]


def test_a_failed_command_takes_part_no_longer(tmp_path: Path):
    """Its error has the end of what it said; the others go on."""
    commands = {
        "good": measure.Command(("true",), {}, tmp_path / "out", tmp_path / "good.log"),
        "bad": measure.Command(("sh", "-c", "echo broken >&2; exit 3"), {}, tmp_path / "out", tmp_path / "bad.log"),
    }
    failed: dict[str, str] = {}
    found = rounds.measure(commands, 1, lambda: None, failed, 2)
    assert failed == {"bad": "exit code 3: broken"}
    assert all(each["runs"].keys() == {"good"} for each in found)


@pytest.mark.slow
def test_time_and_processor_of_all_processes_count(tmp_path: Path):
    """A shell that waits for a child which computes: the child's time is in it, and major faults and load are told."""
    script = f"{sys.executable} -c 'sum(range(4_000_000))'; sleep 0.2"
    run = measure.timed(measure.Command(("sh", "-c", script), {}, tmp_path / "out", tmp_path / "log"))
    assert run.wall > run.cpu > 0.02
    assert run.wall > 0.2


@pytest.mark.slow
def test_memory_is_that_of_all_processes_together(tmp_path: Path):
    """Two children of a shell hold 64 MiB each at one time: together at least 128, the largest less."""
    holding = f"""
import pathlib, sys, time
block = b"x" * (64 << 20)
pathlib.Path({str(tmp_path)!r}, sys.argv[1]).touch()
while not (pathlib.Path({str(tmp_path)!r}, "a").exists() and pathlib.Path({str(tmp_path)!r}, "b").exists()):
    time.sleep(0.01)
time.sleep(1)
"""
    (tmp_path / "child.py").write_text(holding)
    child = f"{sys.executable} {tmp_path / 'child.py'}"
    command = measure.Command(("sh", "-c", f"{child} a & {child} b & wait"), {}, tmp_path / "out", tmp_path / "log")
    found = memory.peak_memory(command)
    assert found.together > 128 << 20
    assert 64 << 20 < found.largest < 128 << 20


def test_eviction_empties_the_page_cache_and_warming_fills_it(tmp_path: Path):
    """Where the file system lets go of pages at all (tmpfs does not)."""
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    assert measure.cached_share([path]) == 1
    measure.evict([path])
    if measure.cached_share([path]) == 1:
        pytest.skip("this file system keeps its pages")
    assert measure.cached_share([path]) == 0
    measure.warm([path])
    assert measure.cached_share([path]) == 1


@pytest.mark.slow
def test_equal_seeds_give_equal_bytes(tmp_path: Path):
    """And another seed, or another step, gives others."""
    data = MICRO["A"]
    runs = [datasets.make(data, tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    first, again, other = ([path.read_bytes() for path in datasets.checkpoints(data, run)] for run in runs)
    assert first == again
    assert not set(first) & set(other)
    assert len(set(first)) == data.count


@pytest.mark.parametrize("name", ["A", "C", "E", "J", pytest.param("I", marks=pytest.mark.slow)])
def test_a_set_holds_what_it_says(tmp_path: Path, name: str):
    """Count, names, shapes and dtype; and the same values in every format."""
    data, plain = MICRO[name], MICRO["A"]
    paths = datasets.checkpoints(data, datasets.make(data, tmp_path))
    expected = datasets.checkpoints(plain, datasets.make(plain, tmp_path / "plain"))
    assert len(paths) == len(data.steps) == data.count
    for path, other in zip(paths, expected, strict=True):
        if data.format == "pieces":
            parts = [load_file(part) for part in sorted(path.iterdir())]
            tensors = {each: torch.cat([part[each] for part in parts if each in part]) for each in parts[0]}
        else:
            tensors = load_folder(path)["model"] if data.format == "dcp" else load(path)
        assert {each: tuple(tensor.shape) for each, tensor in tensors.items()} == {
            tensor.name: tensor.shape for tensor in data.model.tensors
        }
        assert all(tensor.dtype == torch.bfloat16 for tensor in tensors.values())
        assert all(torch.equal(tensor, tensors[each]) for each, tensor in load_file(other).items())


@pytest.mark.parametrize(("name", "other"), [("Z", "B"), pytest.param("K", "A", marks=pytest.mark.slow)])
def test_files_of_ranks_hold_the_values_of_one_file(tmp_path: Path, cli, name: str, other: str):
    """Averaged they are the same, whether DeepSpeed's four processes saved them or FSDP's."""
    averages = []
    for key in (name, other):
        output = tmp_path / f"{key}.safetensors"
        cli("average", datasets.make(MICRO[key], tmp_path), "--half-life", MICRO[key].half_life, "-o", output)
        averages.append(load_file(output))
    assert averages[0].keys() == averages[1].keys()
    assert all(torch.equal(tensor, averages[1][each]) for each, tensor in averages[0].items())


def test_stored_averages_are_taken_for_such(tmp_path: Path, cli):
    """The headers are those of `EMA.store`: all of them enter, with weights of both signs, and are written narrow."""
    data = MICRO["S"]
    run = datasets.make(data, tmp_path)
    output = tmp_path / "out.safetensors"
    done = cli("average", run, "--from", "stored", "--half-life", data.half_life, "-o", output, "--json")
    weights = {run / each["name"]: each["weight"] for each in done.json["plans"][0]["entries"]}
    assert sorted(weights) == sorted(datasets.checkpoints(data, run))
    assert min(weights.values()) < 0 < max(weights.values())
    assert all(tensor.dtype == torch.bfloat16 for tensor in load_file(output).values())


def test_half_precision_is_compared_as_such(tmp_path: Path):
    """One float16 in four is the next representable number."""
    save_file({"a": torch.tensor([1.0, 2.0, 3.0, -1.0]).half()}, tmp_path / "a.safetensors")
    save_file({"a": torch.tensor([1.0, 2.0, 3.0, -1.0009765625]).half()}, tmp_path / "b.safetensors")
    found = compare.compare(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert (found.differing, found.steps) == (0.25, 1)
    assert found.relative == pytest.approx(2**-10 / 3, rel=1e-2)


def test_values_look_like_weights():
    """Around 0, and around 1 in norms; a neighbour in time differs a little."""
    model = MICRO["B"].model
    norm = next(at for at, tensor in enumerate(model.tensors) if "norm" in tensor.name)
    matrix = values.whole(model, 0, 100, 0)
    assert abs(matrix.mean()) < 0.01
    assert 0.01 < matrix.std() < 0.03
    assert abs(values.whole(model, 0, 100, norm).mean() - 1) < 0.01
    moved = values.whole(model, 0, 200, 0) - matrix
    assert 0 < abs(moved).mean() < 0.005


@pytest.mark.slow
def test_the_full_sets_have_the_sizes_of_the_table():
    """A 0.43 GB, B 0.86, D 17 MB, F 4.6, G1 5 MB, G3 3 GB; C, E and I are A in other formats, S is as large as A."""
    full = datasets.sets_at("full")
    sizes = {
        name: (full[name].count, round(full[name].model.nbytes / 1e6)) for name in ("A", "B", "D", "F", "G1", "G3")
    }
    assert sizes == {"A": (16, 431), "B": (8, 862), "D": (50, 17), "F": (6, 4610), "G1": (1000, 5), "G3": (2, 3000)}
    assert all((full[name].model, full[name].count) == (full["A"].model, 16) for name in ("C", "E", "I"))
    assert len(full["G2"].model.tensors) == 100_000
    assert full["S"].nbytes == full["A"].nbytes == full["A16"].nbytes
    assert (full["P"].count, len(full["P"].model.tensors)) == (200, 2000)


def test_a_set_that_does_not_fit_says_how_much_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Before a byte is written."""
    monkeypatch.setattr(datasets.os, "statvfs", lambda path: SimpleNamespace(f_bavail=100, f_frsize=4096))
    with pytest.raises(OSError, match=r"set A needs 17\.\d MB in .*, and 410 kB are free"):
        datasets.make(MICRO["A"], tmp_path)
    assert not list(tmp_path.iterdir())


def test_all_loops_give_the_average_that_ema_cli_gives(tmp_path: Path, cli):
    """With the weights of its plan, to the precision of their arithmetic; anything else is called out."""
    for name in ("A", "B"):
        data = MICRO[name]
        run = datasets.make(data, tmp_path)
        done = cli("average", run, "--half-life", data.half_life, "-o", tmp_path / f"{name}.safetensors", "--json")
        weights = [each["weight"] for each in done.json["plans"][0]["entries"]]
        for loop, function in LOOPS.items():
            output = tmp_path / f"{name}-{loop}.safetensors"
            save_file(function(datasets.checkpoints(data, run), weights), output)
            assert compare.compare(tmp_path / f"{name}.safetensors", output).relative < 4e-3
            wrong = function(datasets.checkpoints(data, run), weights[::-1])
            save_file(wrong, output)
            with pytest.raises(compare.NotTheSame, match="of its largest value"):
                compare.compare(tmp_path / f"{name}.safetensors", output)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"a": torch.ones(3)}, r"1 tensors are only in one, such as 'b'"),
        ({"a": torch.ones(3), "b": torch.ones(2).bfloat16()}, r"'b' is BF16 \[2\], ours F32 \[2\]"),
        ({"a": torch.ones(3, 1), "b": torch.ones(2)}, r"'a' is F32 \[3, 1\], ours F32 \[3\]"),
        ({"a": torch.tensor([1, 1, torch.nan]), "b": torch.ones(2)}, r"'a' differs by inf"),
        ({"a": torch.tensor([1, 1, 1.001]), "b": torch.ones(2)}, r"'a' differs by 0.001 of its largest value"),
    ],
)
def test_another_output_is_not_the_same_average(tmp_path: Path, other: dict[str, torch.Tensor], said: str):
    """Names, dtypes, shapes, and a value that is no number."""
    save_file({"a": torch.ones(3), "b": torch.ones(2)}, tmp_path / "ours.safetensors")
    save_file(other, tmp_path / "theirs.safetensors")
    with pytest.raises(compare.NotTheSame, match=said):
        compare.compare(tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors")


def test_how_far_values_are_apart_is_told(tmp_path: Path):
    """One value in four is the next representable number."""
    save_file({"a": torch.tensor([1.0, 2.0, 3.0, -1.0]).bfloat16()}, tmp_path / "a.safetensors")
    save_file({"a": torch.tensor([1.0, 2.0, 3.0, -1.0078125]).bfloat16()}, tmp_path / "b.safetensors")
    found = compare.compare(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert (found.differing, found.steps) == (0.25, 1)
    assert found.as_text() == "25.00% of values differ, by at most 0.003 of the largest"
    assert found.relative == pytest.approx(0.0078125 / 3)


def test_reads_wait_side_by_side_and_share_the_bandwidth():
    """At 1000 bytes a second and 1 s of latency: two questions asked together cost one latency and two transfers."""
    disk = SlowDisk(1.0, 1000)
    assert [disk.arrival(0.0, 500), disk.arrival(0.0, 500)] == [1.5, 2.0]
    assert disk.arrival(10.0, 1000) == 12.0  # an idle line saves nothing up
    assert SlowDisk(0.0, 1000).arrival(0.0, 500) == 0.5


@pytest.mark.slow
def test_ema_cli_reads_through_the_slow_disk(tmp_path: Path):
    """At 30 ms a read, the seconds it reports hold at least one read after the other of a file; the bytes are equal."""
    run = datasets.make(MICRO["D"], tmp_path)
    outputs = [tmp_path / "slow.safetensors", tmp_path / "fast.safetensors"]
    seconds = []
    for output, latency in zip(outputs, ("0.03", "0"), strict=True):
        script = [sys.executable, ROOT / "scripts/benchmark/slow_disk.py", "--latency", latency, "--bandwidth", "1e9"]
        words = ["average", run, "--half-life", "100ba", "-o", output, "--json"]
        done = subprocess.run([*script, "--", *words], capture_output=True, text=True, check=True)
        seconds.append(json.loads(done.stdout)["written"]["seconds"])
    assert seconds[0] > 0.03
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_rows_are_chosen_by_their_set():
    """In the order of the report; G stands for all of its rows; F and what is cold belong to the full scale alone."""
    assert rows.chosen("G, A", full=False) == ["A", "G1", "G2", "G3"]
    assert rows.chosen("F cold", full=False) == ["F cold"]
    assert set(rows.KEYS) - set(rows.chosen(None, full=False)) == {"A cold", "F cold", "engines"}
    assert set(rows.chosen(None, full=True)) == set(rows.KEYS)
    assert rows.chosen("pieces", full=False) == ["I", "J", "K", "Z", "like-input"]
    further = {"G1", "G2", "G3", "checksum", "engines", "latency", "like-input", "tune", "watch", "J", "K", "Z"}
    assert set(rows.KEYS) - set(rows.chosen("table", full=True)) == further
    with pytest.raises(ValueError, match="'X' is none of A, A cold"):
        rows.chosen("A,X", full=True)


@pytest.mark.slow
def test_one_more_checkpoint_is_folded_into_what_was_watched(tmp_path: Path):
    """Again in each run, from the same state: what is read and written is what the limit reads and writes."""
    data, row = MICRO["A"], next(row for row in rows.ROWS if row.kind == "watch")
    run, laws = datasets.make(data, tmp_path), commands.half_lives(row, data)
    inputs = commands.Inputs(data, run, [], {}, 0, data.model.nbytes)
    inputs = following.watched(inputs, laws, tmp_path)
    prepare = following.prepared("watch", tmp_path, lambda: None)
    for _ in range(2):
        prepare()
        before = set((tmp_path / "watch").rglob("*"))
        subprocess.run(commands.Commands(tmp_path, None).ours(row, inputs).arguments, check=True, capture_output=True)
        written = [path for path in (tmp_path / "watch").rglob("*.safetensors") if "first" not in path.name]
        assert {path.parent.name for path in written} == {"out", "300ba", "rest"}
        assert len(written) == 3 * len(laws)
        assert before.isdisjoint(path for path in written if "300ba" in path.parts)
        assert sum(path.stat().st_size for path in written) == pytest.approx(inputs.bytes_to_write * len(laws), rel=0.1)
    following.clear(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"A"}


def bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the benchmark with everything it writes in a folder."""
    places = ["--data", "data", "--mergekit", "none", "--markdown", "bench.md", "--chart", "bench.png"]
    command = [sys.executable, ROOT / "scripts/bench.py", *places, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_one_row_is_measured_and_its_report_can_be_made_again(tmp_path: Path):
    """The smallest set beside its reference: figures, outputs that agree, nothing left of the data."""
    done = bench(tmp_path, "--scale", "micro", "--sets", "H", "--json", "bench.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "bench.json").read_text())
    assert list(found["rows"]) == ["H"]
    assert_measured(found["rows"])
    assert done.stdout.strip() == (tmp_path / "bench.md").read_text().strip()
    assert [path for path in (tmp_path / "data").rglob("*") if path.is_file()] == []
    again = bench(tmp_path, "--from", "bench.json")
    assert again.stdout == done.stdout


@pytest.mark.slow
@pytest.mark.full
def test_every_kind_of_row_is_measured(tmp_path: Path):
    """With a peer and without, from a cold cache, by numpy, through a slow disk, and the start of the program."""
    sets = "A,A numpy,A cold,H,manifest,tune,watch,A16,J,K,like-input,latency,engines,Z,start-up"
    before = ["--before", str(Path(sys.executable).parent / "ema-cli")]
    options = ["--scale", "micro", "--peers", "naive,mergekit", "--json", "bench.json", *before]
    done = bench(tmp_path, *options, "--sets", sets)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "bench.json").read_text())
    assert list(found["rows"]) == sets.split(",")
    assert [row["same"]["before"] for key, row in found["rows"].items() if key[0] == "A" and key != "A cold"] == [
        "bit-equal",
        "bit-equal",
        "bit-equal",
    ]
    assert_measured(found["rows"])
    assert not found["rows"]["A"]["same"]["naive"].startswith(rounds.NOT_THE_SAME)
    assert found["rows"]["A"]["memory"]["ema-cli"]["together"] > 10 << 20
    assert "mergekit-yaml is not there: it is not installed" in done.stdout


def assert_measured(measured: dict[str, Any]) -> None:
    """Check that nothing failed, and that what has a reference gave its bytes."""
    assert all(row["rounds"] and not row["failed"] for row in measured.values())
    assert all(
        measured[key]["same"]["reference"] == "bit-equal" for key in ("H", "latency", "engines") if key in measured
    )


@pytest.mark.slow
def test_a_report_without_a_measurement_says_what_it_needs(tmp_path: Path):
    """A file that is not there, and one that is something else."""
    assert "error: missing.json: " in bench(tmp_path, "--from", "missing.json").stderr
    (tmp_path / "other.json").write_text("{}")
    assert "error: other.json is not what --json writes" in bench(tmp_path, "--from", "other.json").stderr
    assert os.listdir(tmp_path) == ["other.json"]  # noqa: PTH208
