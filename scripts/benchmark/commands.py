"""The commands that compete: each a whole process, all on the same files."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .datasets import Data
from .measure import Command
from .on_engine import NONE
from .rows import BEFORE, OTHER_HALF_LIVES, Row

HERE = Path(__file__).parent
LABELS = {
    "ema-cli": "ema-cli",
    "reference": "reference",
    BEFORE: "the build before",
    "naive": "naive script",
    "fairseq": "fairseq's loop",
    "timm": "timm's loop",
    "mergekit": "mergekit-yaml",
    "limit": "limit: cat, synced write",
    "limit x4": "limit: cat of four at a time, synced write",
    "sha256sum": "sha256sum of the inputs, one a processor",
}
LATENCY, BANDWIDTH = 0.02, 500e6
ENGINE = "dask:local=2"
_ALONE = ("--no-manifest",)  # as the peers write it; two rows tell what manifest and sums take
_OPTIONS = {
    "manifest": (),
    "checksum": ("--checksum",),
    "stored": ("--from", "stored", *_ALONE),
    "like-input": ("--like-input", *_ALONE),
}


@dataclass(frozen=True)
class Inputs:
    """A set on the disk, and the plan that every competitor follows."""

    data: Data
    run: Path
    files: Sequence[Path]
    weights: Mapping[Path, float]  # by checkpoint, those that are read, oldest first
    bytes_to_read: int
    bytes_to_write: int


@dataclass
class Commands:
    """Builds the commands of a row. Everything that they write goes under `work`."""

    work: Path
    mergekit: Path | None  # its venv
    before: Path | None = None  # another build's ema-cli
    threads: int | None = None
    skipped: dict[str, str] = field(default_factory=dict)  # why a competitor is not there

    def build(self, row: Row, inputs: Inputs, reference: Inputs | None, peers: Sequence[str]) -> dict[str, Command]:
        """Return the commands of all who take part in a row, and note in `skipped` who does not."""
        self.skipped = {}
        found = {"ema-cli": self.ours(row, inputs)}
        if reference is not None:
            found["reference"] = self.reference(row, reference)
        if row.beside_before and self.before is None:
            self.skipped[BEFORE] = "none was named (--before)"
        elif row.beside_before:
            found[BEFORE] = self._average(BEFORE, inputs, half_lives(row, inputs.data), start=[str(self.before)])
        for name in peers:
            if name != "mergekit":
                found[name] = self.loop(name, inputs)
            elif self.mergekit is None:
                self.skipped[name] = "it is not installed; `make bench` tries to, in .bench/mergekit"
            else:
                found[name] = self.merge(inputs)
        outputs = len(half_lives(row, inputs.data))
        found.update((name, self.limit(name, inputs, outputs)) for name in row.limits)
        return found

    def ours(self, row: Row, inputs: Inputs) -> Command:
        """Return what is measured."""
        if row.kind == "latency":
            return self._average("ema-cli", inputs, [inputs.data.half_life], latency=LATENCY)
        if row.kind == "engines":
            return self.on_engine("ema-cli", ENGINE, inputs)
        laws = half_lives(row, inputs.data)
        if row.kind == "watch":
            output = self.work / "watch" / "out"
            return self._command("ema-cli", (*ema_cli(), *watch_words(inputs.run, laws, output)), output)
        if row.kind == "tune":
            output = self.work / "tune" / "best.safetensors"
            words = ("tune", str(inputs.run), *_laws(laws), *self._threads(), "--eval", "echo 1", "-o", str(output))
            return self._command("ema-cli", (*ema_cli(), *words, "--json"), output)
        options = _OPTIONS.get(row.kind, _ALONE)
        environment = {"EMA_KERNEL": "numpy"} if row.kind == "numpy" else {}
        return self._average("ema-cli", inputs, laws, options=options, environment=environment)

    def reference(self, row: Row, inputs: Inputs) -> Command:
        """Return ema-cli on another set, with one half-life, with no latency, or without an engine."""
        if row.kind == "engines":
            return self.on_engine("reference", NONE, inputs)
        if row.kind == "tune":
            return self._average("reference", inputs, half_lives(row, inputs.data), options=())
        latency = 0.0 if row.kind == "latency" else None
        return self._average("reference", inputs, [inputs.data.half_life], latency=latency)

    def _average(
        self,
        name: str,
        inputs: Inputs,
        half_lives: Sequence[str],
        latency: float | None = None,
        options: Sequence[str] = _ALONE,
        start: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Command:
        output = self.work / (f"{name}.safetensors" if len(half_lives) == 1 else f"{name}-several")
        start = start or ema_cli()
        if latency is not None:
            slow = ["--latency", str(latency), "--bandwidth", str(BANDWIDTH), "--"]
            start = [sys.executable, str(HERE / "slow_disk.py"), *slow]
        words = ("average", str(inputs.run), *_laws(half_lives), *self._threads(), *options, "-o", str(output))
        return self._command(name, (*start, *words, "--json"), output, environment)

    def _threads(self) -> list[str]:
        return ["--threads", str(self.threads)] if self.threads else []

    def on_engine(self, name: str, engine: str, inputs: Inputs) -> Command:
        """Return ema-cli on an engine, which tells what it took from when that stood."""
        output = self.work / f"{name}.safetensors"
        words = (engine, str(inputs.run), inputs.data.half_life, str(output))
        return self._command(name, (sys.executable, str(HERE / "on_engine.py"), *words), output)

    def loop(self, name: str, inputs: Inputs) -> Command:
        """Return one of the loops of peer_loops.py."""
        plan = self.work / "plan.json"
        plan.write_text(json.dumps([{"path": str(path), "weight": w} for path, w in inputs.weights.items()]))
        output = self.work / f"{name}.safetensors"
        return self._command(name, (sys.executable, str(HERE / "peer_loops.py"), name, str(plan), str(output)), output)

    def merge(self, inputs: Inputs) -> Command:
        """Return mergekit's linear merge of folders that link to the checkpoints."""
        assert self.mergekit is not None
        models = []
        for path, weight in inputs.weights.items():
            folder = path
            if path.is_file():
                folder = self.work / "mergekit-models" / path.stem
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "config.json").write_text(json.dumps(inputs.data.model.config))
                link = folder / "model.safetensors"
                link.unlink(missing_ok=True)
                link.symlink_to(path.resolve())
            models.append({"model": str(folder), "parameters": {"weight": weight}})
        merge = {
            "merge_method": "linear",
            "models": models,
            "parameters": {"normalize": False},
            "dtype": inputs.data.model.config["torch_dtype"],
        }
        config = self.work / "mergekit.yaml"
        config.write_text(json.dumps(merge))  # JSON is YAML
        output = self.work / "mergekit"
        tool = self.mergekit / "bin" / "mergekit-yaml"
        options = ("--no-copy-tokenizer", "--no-write-model-card", "--quiet")
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        return self._command("mergekit", (str(tool), str(config), str(output), *options), output, offline)

    def limit(self, name: str, inputs: Inputs, outputs: int) -> Command:
        """Return what no average can beat for long: reading every byte, and, for a limit, writing the outputs' size.

        The zeros are written as any data is, by all file systems that do not compress.
        """
        output = self.work / f"{name.replace(' ', '-')}.out"
        each = 'printf "%s\\0" "$@" | xargs -0 -n 1 -P'
        write = (
            f'dd if=/dev/zero of="$0" bs=1M count={inputs.bytes_to_write * outputs} iflag=count_bytes '
            "conv=fsync status=none"
        )
        script = {
            "limit": f'cat "$@" > /dev/null && {write}',
            "limit x4": f"{each} 4 cat > /dev/null && {write}",
            "sha256sum": f'{each} "$(nproc)" sha256sum > /dev/null',
        }[name]
        return self._command(name, ("sh", "-c", script, str(output), *map(str, inputs.files)), output)

    def _command(
        self, name: str, arguments: Sequence[str], output: Path, environment: Mapping[str, str] | None = None
    ) -> Command:
        log = self.work / f"{name.replace(' ', '-')}.log"
        return Command(tuple(arguments), environment or {}, output, log)


def half_lives(row: Row, data: Data) -> list[str]:
    """Return the half-lives of a row; the last is the one that all have."""
    others = {"half-lives": OTHER_HALF_LIVES, "tune": OTHER_HALF_LIVES, "watch": OTHER_HALF_LIVES[-1:]}
    return [*others.get(row.kind, ()), data.half_life]


def _laws(half_lives: Sequence[str]) -> list[str]:
    return [word for half_life in half_lives for word in ("--half-life", half_life)]


def watch_words(run: Path, half_lives: Sequence[str], output: Path) -> list[str]:
    """Return the words that have what is there watched once."""
    return ["watch", str(run), *_laws(half_lives), "--once", "--settle", "0s", "-o", str(output)]


def ema_cli() -> tuple[str, ...]:
    """Return how ema-cli of this environment is started: as its users do, where it is installed."""
    script = Path(sys.executable).parent / "ema-cli"
    return (str(script),) if script.exists() else (sys.executable, "-m", "ema_cli")
