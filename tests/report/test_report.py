"""The report: one page that loads nothing, says what the manifest and the comparison say, and trusts no name."""

from __future__ import annotations

import hashlib
import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ema_cli.comparing.distance import Distance
from ema_cli.comparing.layers import group_layers
from ema_cli.report import charts
from ema_cli.report.distances import MOST_LAYERS, Distances
from ema_cli.report.page import make_page
from tests.conftest import Cli, write_hf_run, write_torch_run

VOID = {"meta", "br", "img", "link", "input", "hr"}
SECTIONS = [
    "Weights over training time", "Distance from the checkpoints", "How it was made", "Checkpoints", "Tensors", "Files",
]  # fmt: skip
HOSTILE = "<script>alert(1)</script>\"' onload=x><img src=x onerror=y>\u202e\x1b[31m&amp;"


class Page(HTMLParser):
    """What a browser would see: elements, text, tables by their id; well-formed or an error."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._table: list[list[str]] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self._table = self.tables.setdefault(str(dict(attrs)["id"]), [])
        if tag == "tr":
            self._table.append([])
        if tag in ("td", "th"):
            self._table[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))
        if any(tag in ("td", "th") for tag in self.open):
            self._table[-1][-1] += data

    @property
    def text(self) -> str:
        """All text that is shown."""
        return " ".join(data for tag, data in self.texts if tag != "style")

    def headings(self) -> list[str]:
        """The titles of the sections."""
        return [data for tag, data in self.texts if tag == "h2"]


def check_harmless(content: str) -> Page:
    """Check that the page loads nothing and runs nothing, and return it."""
    page = Page(content)
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "img", "iframe", "object", "embed", "base", "form", "use", "image", "a"), (
            tag
        )
        for name in attributes:
            assert name not in ("src", "href", "xlink:href", "srcset", "action", "data", "background"), name
            assert not name.startswith("on"), name
    style = " ".join(data for tag, data in page.texts if tag == "style")
    for text in (style, *(str(value) for _, attributes in page.tags for value in attributes.values())):
        assert not re.search(r"url\(|@import|expression\(|https?:|//", text), text
    assert content.isprintable() or not re.search("[\u202e\x1b]", content)
    return page


@pytest.fixture
def run(cli: Cli, tmp_path: Path) -> Path:
    """A run of Hugging Face folders, and its average."""
    write_hf_run(tmp_path / "ckpts", [100, 200, 300, 400, 800])
    done = cli("average", "ckpts", "--half-life", "150ba", "-o", "out")
    assert done.code == 0, done
    return tmp_path


def test_a_report_has_everything_and_needs_nothing(cli: Cli, run: Path):
    """All sections, the recipe, the version, the gap in the run and the sums of the files, in one harmless file."""
    done = cli("report", "out", "--against", "ckpts", "-o", "page.html")
    assert (done.code, done.out) == (0, "page.html\n")
    content = (run / "page.html").read_text()
    page = check_harmless(content)
    assert page.headings() == SECTIONS
    manifest = json.loads((run / "out" / "ema-manifest.json").read_text())
    for told in ("half-life 150ba", f"ema-cli {manifest['tool']['version']}", "5 checkpoints", "400ba from 400ba"):
        assert told in page.text
    assert f"{manifest['effective_checkpoints']:.1f}" in page.text
    sums = {name: sha256 for name, _, sha256 in page.tables["files"][1:]}
    assert sums == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (run / "out").iterdir()
        if path.name not in ("ema-manifest.json", "SHA256SUMS")
    }
    shown = {row[0]: row[2] for row in page.tables["checkpoints"][1:]}
    assert shown == {each["name"]: f"{each['weight']:.2%}" for each in manifest["inputs"]}
    assert sum(tag == "svg" for tag, _ in page.tags) == 6  # three charts, each for wide screens and for narrow ones
    assert "training time [batches]" in page.text


def test_the_numbers_are_those_of_compare(cli: Cli, run: Path):
    """The distance from each checkpoint, and of each layer from the first and the last, is what compare says."""
    cli("report", "out", "--against", "ckpts", "-o", "page.html")
    page = Page((run / "page.html").read_text())
    told = {}
    for step in (100, 200, 300, 400, 800):
        told[step] = cli("compare", "out", f"ckpts/checkpoint-{step}", "--json").json
        row = next(row for row in page.tables["checkpoints"] if row[0] == f"checkpoint-{step}")
        assert row[4] == f"{told[step]['total']['relative_distance'] * 100:.3g}%"
    head, *rows = page.tables["layers"]
    assert (head[1], head[3]) == ("first, 100ba", "last, 800ba")
    assert [row[0] for row in rows] == ["all layers", "layer"]
    nearest = int(re.search(r"nearest, (\d+)ba", head[2])[1])
    assert nearest == min(told, key=lambda step: told[step]["total"]["relative_distance"])
    for row in rows:
        for column, step in ((1, 100), (2, nearest), (3, 800)):
            parts = {"all layers": told[step]["total"], **{each["name"]: each for each in told[step]["layers"]}}
            assert row[column] == f"{parts[row[0]]['relative_distance'] * 100:.3g}%"


def test_equal_reports_have_equal_bytes(cli: Cli, run: Path):
    """Nothing of the clock on the wall, the place or the number of threads is in the page."""
    cli("report", "out", "--against", "ckpts", "-o", "page.html", "--threads", "1")
    moved = run / "elsewhere"
    moved.mkdir()
    for name in ("out", "ckpts"):
        (run / name).rename(moved / name)
    done = cli("report", "elsewhere/out", "--against", "elsewhere/ckpts", "-o", "again.html", "--threads", "5")
    assert done.code == 0, done
    content = (run / "page.html").read_bytes()
    assert content == (run / "again.html").read_bytes()
    assert str(run).encode() not in content


def test_without_checkpoints_the_page_says_how_to_have_distances(cli: Cli, run: Path):
    """The manifest is enough for all but the distances; by default the page has the name of the average."""
    done = cli("report", "out", "--json")
    assert done.json["written"] == {"path": "out.html", "bytes": (run / "out.html").stat().st_size}
    page = check_harmless((run / "out.html").read_text())
    assert page.headings() == SECTIONS
    assert "--against" in page.text
    assert "layers" not in page.tables


def test_a_page_is_written_whole_or_not_at_all(cli: Cli, run: Path):
    """What is there is kept without --force; an input, a folder and a wrong name are refused even with it."""
    page = run / "page.html"
    page.write_text("mine")
    assert cli("report", "out", "-o", "page.html").code == 5
    assert page.read_text() == "mine"
    assert cli("report", "out", "-o", "page.html", "-f", "-q").err == ""
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert cli("report", "out", "-o", "page.txt").code == 2
    (run / "folder.html").mkdir()
    assert cli("report", "out", "-o", "folder.html", "-f").code == 5
    assert cli("report", "out", "-o", "nowhere/page.html").code == 5
    assert not [path for path in run.iterdir() if path.name.startswith(".ema-cli-")]


def test_a_page_does_not_lie_in_what_it_tells_of(cli: Cli, run: Path):
    """A file more in the folder would make verify fail, and what is published with it."""
    done = cli("report", "out", "-o", "out/page.html")
    assert (done.code, "is inside out" in done.err) == (5, True), done
    assert cli("report", "out", "-o", "out/page.html", "--force").code == 5
    assert cli("verify", "out").code == 0


def test_a_report_of_no_average_is_an_error_that_says_what_to_do(cli: Cli, run: Path):
    """No manifest, several averages, nothing there: each is an error that says what to do."""
    done = cli("report", "ckpts/checkpoint-100")
    assert (done.code, "is no average of ema-cli's, but a raw checkpoint" in done.err) == (3, True)
    done = cli("report", "ckpts")
    assert (done.code, "but a run of" in done.err, "hint:" in done.err) == (3, True, True)
    assert cli("average", "ckpts", "--half-life", "50ba", "--no-manifest", "-o", "bare.pt").code == 0
    assert "has no manifest" in cli("report", "bare.pt").err
    assert cli("report", "nothing").code == 2
    cli("average", "ckpts", "--half-life", "50ba", "--half-life", "150ba", "-o", "sweep")
    done = cli("report", "sweep")
    assert (done.code, "holds several averages" in done.err) == (2, True)
    assert "sweep/ema-" in done.err
    assert cli("average", "ckpts", "--half-life", "50ba", "-o", "ckpts/one").code == 0
    assert cli("report", "ckpts").err == "error: ckpts: is no average, and holds one\nhint:  name it: ckpts/one\n"


def test_a_single_file_has_its_manifest_beside_it(cli: Cli, tmp_path: Path):
    """A report on one file, of checkpoints of torch.save."""
    write_torch_run(tmp_path / "ckpts", [100, 200, 300])
    cli("average", "ckpts", "--half-life", "100ba", "-o", "release.safetensors")
    assert cli("report", "release.safetensors", "--against", "ckpts").out == "release.safetensors.html\n"
    page = check_harmless((tmp_path / "release.safetensors.html").read_text())
    assert ["F32", "averaged", "2", "64 B"] in page.tables["tensors"]


def test_distances_are_from_what_was_averaged(cli: Cli, run: Path):
    """Another checkpoint under the name of an input is refused; one that is gone is told, and all gone is an error."""
    (run / "ckpts" / "checkpoint-200" / "model.safetensors").unlink()
    (run / "ckpts" / "checkpoint-200").rename(run / "moved")
    done = cli("report", "out", "--against", "ckpts", "-o", "page.html")
    assert done.code == 0
    assert "warning: ckpts: does not hold checkpoint-200" in done.err
    assert "not there: checkpoint-200" in Page((run / "page.html").read_text()).text
    assert cli("report", "out", "--against", "out", "-o", "b.html").code == 4
    write_hf_run(run / "other", [101])
    (run / "other" / "checkpoint-101").rename(run / "other" / "checkpoint-100")
    done = cli("report", "out", "--against", "other", "-o", "b.html")
    assert (done.code, "has changed since it was averaged" in done.err) == (3, True)
    assert not (run / "b.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/../../b"])
def test_a_manifest_leads_out_of_no_folder(cli: Cli, run: Path, name: str):
    """A manifest may come from anywhere: names in it that leave the folder are refused."""
    path = run / "out" / "ema-manifest.json"
    manifest = json.loads(path.read_text())
    manifest["inputs"][0]["name"] = name
    path.write_text(json.dumps(manifest))
    done = cli("report", "out", "--against", "ckpts", "-o", "page.html")
    assert (done.code, "lies outside any folder that could be given" in done.err) == (3, True)


def test_averages_that_were_averaged_are_found_as_averages(cli: Cli, tmp_path: Path):
    """A file in `ema/` is an average by its place: with --weights ema, `report --against` opens it as `verify` does."""
    (tmp_path / "run" / "ema").mkdir(parents=True)
    for step in (100, 200, 300):
        path = tmp_path / "run" / "ema" / f"step-{step}.safetensors"
        save_file({"w": torch.full((3,), float(step))}, path, {"step": str(step)})
    files = sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "run" / "ema").iterdir())
    assert cli("average", *files, "--half-life", "100ba", "--weights", "ema", "-o", "out.safetensors").code == 0
    assert cli("verify", "out.safetensors", "--against", "run/ema").code == 0
    done = cli("report", "out.safetensors", "--against", "run/ema")
    assert (done.code, done.out) == (0, "out.safetensors.html\n"), done.err


def test_hostile_names_are_text(cli: Cli, tmp_path: Path):
    """Markup, controls and marks of direction in the names of files and tensors are shown, and do nothing."""
    odd = "<img src=x onerror=alert(1)>&'"
    (tmp_path / "ckpts").mkdir()
    for step in (1, 2, 3):
        tensors = {
            "<script>alert(1)</script>.0.weight": torch.full((2,), float(step)),
            "b\u202e.x": torch.ones(1) * step,
        }
        save_file(tensors, tmp_path / "ckpts" / f"{odd}-step-{step}.safetensors")
    done = cli("average", "ckpts", "--half-life", "1ba", "-o", "<b>.safetensors")
    assert done.code == 0, done
    done = cli("report", "<b>.safetensors", "--against", "ckpts", "-o", "page.html")
    assert done.code == 0, done
    page = check_harmless((tmp_path / "page.html").read_text())
    assert page.tables["checkpoints"][1][0] == f"{odd}-step-1.safetensors"
    assert {row[0] for row in page.tables["layers"]} >= {"<script>alert(1)</script>.0", "b\\u202e"}


def manifest_of(cli: Cli, tmp_path: Path) -> dict[str, Any]:
    """Return the manifest of a real average, to make others of."""
    write_torch_run(tmp_path / "ckpts", [100, 200, 300])
    cli("average", "ckpts", "--half-life", "100ba", "-o", "release.safetensors")
    manifest: dict[str, Any] = json.loads((tmp_path / "release.safetensors.manifest.json").read_text())
    return manifest


def test_every_text_of_a_manifest_is_escaped(cli: Cli, tmp_path: Path):
    """Whatever a manifest says, in whichever place, it is text on the page."""
    manifest = manifest_of(cli, tmp_path)
    for each in (*manifest["inputs"], *manifest["outputs"], *manifest["tensors"]):
        each.update({key: HOSTILE for key, value in each.items() if isinstance(value, str) and key != "clock"})
    manifest["inputs"][0]["weight"] = -0.25
    manifest["tensors"][0].update(averaged=False, why=HOSTILE, non_finite=True)
    law = ("half_life", "update_interval")  # which are read, and refused where they are no times
    manifest["recipe"] = {
        key: HOSTILE if isinstance(value, str) and key not in law else value
        for key, value in manifest["recipe"].items()
    }
    manifest["recipe"][HOSTILE] = HOSTILE
    manifest["libraries"] = {HOSTILE: HOSTILE}
    manifest["tool"]["version"] = manifest["fingerprint"]["what"] = HOSTILE
    manifest["warnings"] = [HOSTILE]
    manifest["tune"] = {
        "command": HOSTILE,
        "metric": HOSTILE,
        "maximize": True,
        "winner": "2ba",
        "candidates": [{"name": "2ba", "values": [1.0]}, {"name": "3ba", "values": [], "failed": HOSTILE}],
    }
    far = Distance(1.0, 1.0, 1.0, 0.5, 0.5, 1.0)
    found = Distances(range(3), [far] * 3, {HOSTILE: [far] * 3}, [HOSTILE], True, 1)
    page = check_harmless(make_page(HOSTILE, manifest, found))
    assert page.text.count("<script>alert(1)</script>") > 15


def test_how_a_half_life_was_chosen_is_drawn(cli: Cli, tmp_path: Path):
    """The metric against the half-life, for both widths, the last checkpoint as a line, and all numbers in a table."""
    manifest = manifest_of(cli, tmp_path)
    assert "How the half-life was chosen" not in check_harmless(make_page("out", manifest, None)).headings()
    manifest["tune"] = {
        "command": "eval.sh {path}",
        "metric": "eval_loss",
        "maximize": False,
        "winner": "400ba",
        "candidates": [
            {"name": "last", "values": [3.0]},
            {"name": "0ba", "values": [3.0], "same_as": "last"},
            {"name": "400ba", "values": [1.0, 2.0]},
            {"name": "9000ba", "values": [], "failed": "it printed nothing"},
        ],
    }
    page = check_harmless(make_page("out", manifest, None))
    assert page.headings().count("How the half-life was chosen") == 1
    assert (
        sum(attributes.get("aria-label", "").startswith("Metric") for tag, attributes in page.tags if tag == "svg") == 2
    )
    assert page.text.count("last checkpoint") == 2
    assert "3 candidates evaluated by eval.sh {path}: eval_loss, less is better" in page.text
    assert page.tables["candidates"][1:] == [
        ["last", "3", ""],
        ["0ba", "3", "the same weights as last"],
        ["400ba", "1.5", "best"],
        ["9000ba", "-", "it printed nothing"],
    ]


def test_labels_of_lines_that_end_together_stand_apart(cli: Cli, tmp_path: Path):
    """Of a series each line has its label, and the last checkpoint; the winner's stays within the chart."""
    manifest = manifest_of(cli, tmp_path)
    candidates: list[Any] = [
        {"name": f"{half}ba-at-{clock}ba", "values": [2.0 + clock / 1e6 - half / 1e6 * (clock == 100)]}
        for half in (20, 100, 500)
        for clock in (100, 200, 300)
    ]
    manifest["tune"] = {
        "command": "e", "metric": None, "maximize": False, "winner": "500ba-at-100ba",
        "candidates": [{"name": "last", "values": [2.0001]}, *candidates],
    }  # fmt: skip
    content = make_page("out", manifest, None)
    for width, chart in re.findall(r'<svg viewBox="0 0 (\d+) \d+" role="img" aria-label="Metric(.*?)</svg>', content):
        labels = re.findall(r'<text class="end name" x="[\d.]+" y="([\d.]+)">([^<]*)<', chart)
        assert sorted(name for _, name in labels) == ["100ba", "20ba", "500ba", "last checkpoint"]
        places = sorted(float(y) for y, _ in labels)
        assert min(after - before for before, after in pairwise(places)) >= 12.9
        (middle,) = re.findall(r'<text class="mid note" x="([\d.]+)"', chart)
        assert 55 <= float(middle) <= float(width) - 55


def test_stored_averages_are_told_as_such(cli: Cli, tmp_path: Path):
    """Averages that a training stored share clocks and have negative weights: two colours, and no line through them."""
    manifest = manifest_of(cli, tmp_path)
    assert 'class="line"' in make_page("a", manifest, at_distances(0.1, 0.2, 0.3))
    manifest["approximation"] = {"relative_error": 0.0072, "least_error": 0.007}
    manifest["inputs"][1].update(weight=-0.5, clock="100ba")
    content = make_page("a", manifest, at_distances(0.1, 0.2, 0.3))
    page = check_harmless(content)
    for told in ("3 stored averages combined to an average of half-life 100ba", "0.72%", "negative weight"):
        assert told in page.text
    assert "effective number" not in page.text
    assert ('class="line"' in content, '<circle class="minus"' in content) == (False, True)


def at_distances(*shares: float) -> Distances:
    """Return distances from so many checkpoints."""
    row = [Distance(1, 1, 1, share, 0.9, 1) for share in shares]
    return Distances(range(len(row)), row, {"layer": row}, [], False, 0)


@pytest.mark.slow
def test_a_large_run_stays_small_and_says_what_is_left_out(cli: Cli, tmp_path: Path):
    """Two thousand checkpoints of four hundred layers come to less than 2 MB, with a note for each cut."""
    manifest = manifest_of(cli, tmp_path)
    count = 2000
    first = manifest["inputs"][0]
    manifest["inputs"] = [
        {**first, "name": f"checkpoint-{at}", "clock": f"{at}e9tok", "weight": 1 / count} for at in range(1, count + 1)
    ]
    manifest["mean_age"] = "1000e9tok"
    layers, together = group_layers([f"model.layers.{at}.weight" for at in range(400)], MOST_LAYERS)
    labels = dict.fromkeys(layers.values())
    assert (len(labels), together) == (MOST_LAYERS, True)
    row = [Distance(1, 1, 1, at / count + 0.01, 0.9, 1) for at in range(count)]
    content = make_page("large", manifest, Distances(range(count), row, dict.fromkeys(labels, row), [], together, 0))
    page = check_harmless(content)
    assert len(content.encode()) < 2_000_000
    for note in ("150 of 2000 are shown", "56 of 2000 are shown", "they are put together", "The first and the last of"):
        assert note in page.text
    assert len(page.tables["checkpoints"]) == 1001
    assert len(page.tables["layers"]) == MOST_LAYERS + 2


def test_numbers_that_are_none_are_shown_as_such(cli: Cli, tmp_path: Path):
    """NaN is told as nan and drawn as no number; the nearest is the nearest of the others."""
    manifest = manifest_of(cli, tmp_path)
    nan, none = Distance(*[math.nan] * 6), Distance(1, 1, 0, None, None, 1)
    row = [nan, Distance(1, 1, 1, 0.25, 0.9, 1), none]
    page = check_harmless(make_page("odd", manifest, Distances(range(3), row, {"layer": row}, [], False, 0)))
    assert [cells[4] for cells in page.tables["checkpoints"][1:]] == ["nan", "25%", "-"]
    assert page.tables["layers"][0][2] == "nearest, 200ba"
    assert "no number" in page.text


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [(0, 1, 5, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0.03, 0.11, 4, [0.04, 0.06, 0.08, 0.1]), (7, 7, 4, [7]),
     (20, 980, 8, [200, 400, 600, 800])],
)  # fmt: skip
def test_ticks_are_round_numbers(low: float, high: float, most: int, expected: list[float]):
    """Ticks are multiples of 1, 2, 2.5 or 5, within the axis."""
    assert charts.ticks(low, high, most) == pytest.approx(expected)


def test_shades_cover_what_there_is():
    """Edges are round, in order, and few enough for the shades; each value has the shade that its words say."""
    assert charts.shade_edges([0.012, 0.03, 0.9]) == pytest.approx([0.02, 0.05, 0.1, 0.2, 0.5])
    assert charts.shade_edges([0.0, 0.0]) == charts.shade_edges([0.3]) == []
    wide = charts.shade_edges([1e-9, 1e3])
    assert len(wide) < charts.SHADES
    assert charts.shade_words([0.02, 0.5]) == ["< 2%", "2\u201350%", "\u2265 50%"]
    assert [charts.shade(value, [0.02, 0.5]) for value in (0.0, 0.02, 0.6, None, math.nan)] == [
        "s0", "s4", "s8", "none", "none",
    ]  # fmt: skip


def test_the_name_in_a_chart_is_not_the_ending_that_all_have(cli: Cli, tmp_path: Path):
    """Checkpoints without a clock have their names there, as much of them as fits: `.safetensors` is twelve letters."""
    (tmp_path / "ckpts").mkdir()
    for number, name in enumerate("abc"):
        save_file({"w": torch.full((4,), float(number))}, tmp_path / "ckpts" / f"{name}.safetensors")
    assert cli("average", "ckpts", "--profile", "uniform", "-o", "x.safetensors").code == 0
    assert cli("report", "x.safetensors", "--against", "ckpts", "-o", "x.html").code == 0
    text = (tmp_path / "x.html").read_text()
    assert "distance from c<" in text
    assert "....safetensors" not in text
