"""Train a small language model, let `ema-cli tune` choose the half-life of an average, and measure what that gives.

`tune` evaluates each half-life by this script's own evaluation (`--loss-of PATH`). Beside its results stand averages of
the same half-lives by three other roads: of the checkpoints as they came, which `ema-cli watch` followed; from two
averages that the training stored; and of every batch, which all others come near to.

Run by `make demo`; two CPU cores are enough. It trains a number of batches, whatever time they take, as only the number
decides what comes out. The figures are reported as they come out: a half-life that loses to the last checkpoint is in
the table and in the chart like any other.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics

import matplotlib as mpl
import torch
import torch.nn.functional as F  # noqa: N812 (the name everyone knows it by)
from safetensors.torch import load_file
from torch import Tensor, nn

from ema_cli import EMA

CONTEXT = 128  # bytes
WIDTH, HEADS, LAYERS = 96, 3, 3
WINDOWS_PER_BATCH = 8
LEARNING_RATE = 3e-3
WARM_UP = 40  # batches; after them the learning rate never changes
BATCHES = 1000  # with seeds 0 and 1, half-lives from 10 to 100 batches are better then; after some fifty none is yet
CHECKPOINTS = 100  # so many at least, however short the run is
MEASURED = 20  # batches, the first one left out, tell how long the rest will take
CURVE_POINTS = 16
STORED = ("50ba", "200ba")  # of these averages any half-life is made afterwards
STORED_EVERY = 5  # checkpoints
NICE = [digit * 10**power for power in range(8) for digit in (1, 2, 5)]


class Block(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        batch, length, _ = hidden.shape
        qkv = self.qkv(self.norm1(hidden)).view(batch, length, 3, HEADS, WIDTH // HEADS)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.proj(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        expanded: Tensor = self.down(F.gelu(self.up(self.norm2(hidden))))
        return hidden + expanded


class ByteModel(nn.Module):
    """A causal language model over bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256, bias=False)
        # The default standard deviation of 1 would drown what the layers add.
        nn.init.normal_(self.embed.weight, std=0.02)
        nn.init.normal_(self.position.weight, std=0.02)

    def forward(self, windows: Tensor) -> Tensor:
        """Return the mean loss in nats per byte of windows of CONTEXT + 1 bytes."""
        hidden = self.embed(windows[:, :-1]) + self.position.weight
        logits = self.head(self.norm(self.blocks(hidden)))
        loss: Tensor = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        return loss


def load_text() -> tuple[Tensor, Tensor]:
    """Return Python's own help topics as bytes: the first 90 % to train on, the rest held out.

    Some topics repeat passages of others, so the held-out part is not all new: compare losses, do not quote them.
    """
    raw = "\n".join(topics[name] for name in sorted(topics)).encode()
    text = torch.tensor(list(raw))
    cut = len(text) * 9 // 10
    return text[:cut], text[cut:]


def prepare_folder(folder: Path) -> None:
    """Empty the checkpoint folder of an earlier demo, and of nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    ours = re.compile(r"step-\d+\.pt|ema/(\d+(e\d+)?ba/)?(first|\d+ba)\.safetensors")
    found = sorted(path for path in folder.rglob("*") if not path.is_dir())
    foreign = [path for path in found if not ours.fullmatch(path.relative_to(folder).as_posix())]
    if foreign:
        sys.exit(f"error: {foreign[0]} is not this demo's checkpoint; move it away or choose another --dir")
    for path in found:
        path.unlink()


def plan(batches: int) -> tuple[int, list[int]]:
    """Return the distance between checkpoints, and the half-lives to try; in batches."""
    interval = max(n for n in NICE if n <= max(1, batches // CHECKPOINTS))
    return interval, [half_life for half_life in NICE if interval <= half_life <= batches]


def train(text: Tensor, folder: Path, batches: int, seconds: float = math.inf) -> EMA:
    """Train at a constant learning rate and save a checkpoint at every interval and at the end.

    Averages are stored in `ema/` beside them; those of every batch, of all half-lives, are returned. After so many
    `seconds` it ends early with a checkpoint, and says so.
    """
    interval, half_lives = plan(batches)
    model = ByteModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: min(1.0, (done + 1) / WARM_UP))
    stored = EMA(model, half_life=STORED)
    dense = EMA(model, half_life=[f"{half_life}ba" for half_life in half_lives])
    sizes = f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters"
    log(f"training: {sizes}, learning rate {LEARNING_RATE:g}, constant after {WARM_UP} batches of warm-up")
    started = shown = time.monotonic()
    for step in range(1, batches + 1):
        starts = torch.randint(len(text) - CONTEXT, (WINDOWS_PER_BATCH, 1))
        loss = model(text[starts + torch.arange(CONTEXT + 1)])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        stored.update()
        dense.update()
        now = time.monotonic()
        if step == 1:
            started = now  # the first takes longer than any other
        # The clock is read only where a checkpoint is due, so that the run ends with one.
        late = step % interval == 0 and now - started >= seconds
        ends = step == batches or late
        if step % interval == 0 or ends:
            state = {"model": model.state_dict(), "step": step, "loss": loss.item()}
            torch.save(state, folder / f"step-{step:05d}.pt")
        if step % (interval * STORED_EVERY) == 0 or ends:
            stored.store(folder / "ema")
        left = (now - started) * (batches - step) / max(step - 1, 1)
        if step == MEASURED + 1:
            log(f"{batches} batches: {duration(left)} on this machine as it is now, and then the evaluations")
        if ends or now - shown >= 10:
            shown = now
            log(f"batch {step:5d} of {batches}  training loss {loss.item():.3f}  {0 if ends else left:4.0f} s left")
        if late and step < batches:
            log(f"stopped early, after {step} of {batches} batches, by --seconds: too few tell nothing of averages")
        if ends:
            break
    return dense


def duration(seconds: float) -> str:
    """Return a duration in words."""
    return f"about {math.ceil(seconds / 60)} min" if seconds > 90 else f"about {math.ceil(seconds)} s"


class Watcher:
    """`ema-cli watch` beside a training, in a process of its own."""

    def __init__(self, folder: Path, output: Path, half_lives: list[int], batches: int) -> None:
        for old in (output, output.with_name(f"{output.name}.watch")):  # of an earlier demo
            shutil.rmtree(old, ignore_errors=True)
        asked = [argument for half_life in half_lives for argument in ("--half-life", f"{half_life}ba")]
        pace = ["--every", "1s", "--settle", "2s", "--publish-every", f"{batches}ba", "--until", f"{batches}ba"]
        self._pattern = output / "ema-{half_life}.safetensors"
        self._arguments = ["watch", str(folder), *asked, *pace, "-o", str(self._pattern), "--quiet"]
        print("$ ema-cli", shlex.join(self._arguments), "&", flush=True)
        self._process = subprocess.Popen([sys.executable, "-m", "ema_cli", *self._arguments])

    def finish(self, half_lives: list[int], *, early: bool) -> dict[int, Path]:
        """Wait until the last checkpoint is in the averages; return these by half-life.

        Where the training ended `early`, that checkpoint is not the one that is waited for: another call takes it in.
        """
        if early:
            self._process.send_signal(signal.SIGINT)
            self._process.wait()
            run_ema_cli(*self._arguments, "--once")
        elif code := self._process.wait():
            sys.exit(f"error: ema-cli watch failed with exit code {code}")
        return {half_life: Path(str(self._pattern).format(half_life=f"{half_life}ba")) for half_life in half_lives}

    def stop(self) -> None:
        """End it, where something else has failed."""
        self._process.terminate()


def log(line: str) -> None:
    """Write a line of progress to stderr."""
    print(line, file=sys.stderr, flush=True)


def run_ema_cli(*arguments: str) -> None:
    """Show an `ema-cli` command and run it; leave with its exit code if it fails."""
    print("$ ema-cli", shlex.join(arguments), flush=True)
    code = subprocess.run([sys.executable, "-m", "ema_cli", *arguments], check=False).returncode
    if code:
        log(f"error: ema-cli {arguments[0]} failed with exit code {code}")
        sys.exit(code)


def tune(folder: Path, output: Path, half_lives: list[int]) -> dict[str, float]:
    """Let `ema-cli tune` evaluate the half-lives; return the loss of each, and of the last checkpoint, by its name."""
    shutil.rmtree(f"{output}.tune", ignore_errors=True)  # of an earlier demo: it was another run
    evaluation = shlex.join([sys.executable, str(Path(__file__).resolve()), "--loss-of"])
    asked = [argument for half_life in half_lives for argument in ("--half-life", f"{half_life}ba")]
    run_ema_cli("inspect", str(folder), "--half-life", f"{half_lives[len(half_lives) // 2]}ba")
    tuning = ["tune", str(folder), *asked, "--eval", f"{evaluation} {{path}}", "-o", str(output)]
    run_ema_cli(*tuning, "--allow-last", "--force")
    manifest = json.loads(output.with_name(f"{output.name}.manifest.json").read_text())
    return {row["name"]: math.fsum(row["values"]) for row in manifest["tune"]["candidates"]}


def average_otherwise(folder: Path, output: Path, half_lives: list[int], dense: EMA) -> dict[str, dict[int, Path]]:
    """Average from what the training stored, and of every batch; return the files by road and half-life, in batches."""
    asked = [argument for half_life in half_lives for argument in ("--half-life", f"{half_life}ba")]
    pattern = output / "from-stored" / "ema-{half_life}.safetensors"
    options = ["--from", "stored", "--allow-approximate"]
    run_ema_cli("average", str(folder), *options, *asked, "-o", str(pattern), "--force", "-q")
    (output / "dense").mkdir(exist_ok=True)
    files = {
        "stored": {half_life: Path(str(pattern).format(half_life=f"{half_life}ba")) for half_life in half_lives},
        "every batch": {half_life: output / "dense" / f"ema-{half_life}ba.safetensors" for half_life in half_lives},
    }
    for half_life, path in files["every batch"].items():
        dense.save(path, f"{half_life}ba", force=True)
    return files


@torch.inference_mode()
def evaluate(path: Path, held_out: Tensor) -> float:
    """Return the loss, in nats per byte, of a stored model over the whole held-out text."""
    model = ByteModel()
    averaged = path.suffix == ".safetensors"
    model.load_state_dict(load_file(path) if averaged else torch.load(path)["model"], strict=True)
    # Neighbours share one byte: the last of a window is only predicted, the first of the next only read.
    windows = held_out.unfold(0, CONTEXT + 1, CONTEXT)
    losses = [model(part).item() * len(part) for part in windows.tensor_split(12)]
    return math.fsum(losses) / len(windows)


def print_table(step: int, last_loss: float, losses: dict[str, dict[int, float]]) -> None:
    """Print every half-life by every road beside the last checkpoint, winners and losers alike."""
    best = min([last_loss, *(loss for each in losses.values() for loss in each.values())])
    print("\nheld-out loss, nats per byte; an average of")
    print(f"  {'':<30}" + "".join(f"{road:>14}" for road in losses))
    print(f"  {f'last checkpoint (step {step})':<30}{last_loss:>14.4f}" + ("  best" if last_loss == best else ""))
    for half_life in losses["files"]:
        row = [each[half_life] for each in losses.values()]
        mark = "  best" if best in row else ""
        print(f"  {f'half-life {half_life}ba':<30}" + "".join(f"{loss:>14.4f}" for loss in row) + mark)


def draw(path: Path, curve: dict[int, float], roads: dict[str, dict[int, float]]) -> None:
    """Draw the run's loss with the averages at its end, and the loss against the half-life by each road."""
    losses = roads["files"]
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    last = max(curve)
    figure, (run, sweep) = plt.subplots(
        1, 2, figsize=(10, 4), dpi=120, layout="constrained", gridspec_kw={"wspace": 0.06}
    )
    run.plot(list(curve), list(curve.values()), marker=".", color="tab:gray", label="checkpoints")
    run.scatter([last] * len(losses), list(losses.values()), marker="_", s=120, color="tab:blue", zorder=3)
    run.scatter([], [], marker="_", s=120, color="tab:blue", label="averages")
    run.set(title="The run", xlabel="training time [batches]", ylabel="held-out loss [nats per byte]")
    sweep.axhline(curve[last], color="tab:gray", linestyle="--", label=f"last checkpoint (step {last})")
    colors = ("tab:blue", "tab:red", "tab:orange", "tab:green")
    styles = zip(roads.items(), colors, ("o", "+", "s", "x"), ("-", "-.", "--", ":"), strict=True)
    for (road, each), color, marker, line in styles:
        label = f"averages: {road}"
        sweep.plot(list(each), list(each.values()), marker=marker, linestyle=line, color=color, label=label)
    sweep.set(title="The averages", xlabel="half-life [batches]", ylabel="held-out loss [nats per byte]")
    sweep.set_xscale("log")
    sweep.set_xticks(list(losses), labels=[str(half_life) for half_life in losses])
    sweep.minorticks_off()
    for axes in (run, sweep):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(path)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--batches", type=int, default=BATCHES, help=f"how many to train (default: {BATCHES}, which suffice)"
    )
    parser.add_argument("--seconds", type=float, default=math.inf, help="end the training early after so many")
    parser.add_argument("--dir", type=Path, default=Path("demo"), help="where all files go (default: demo)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the batches (default: 0)")
    parser.add_argument("--loss-of", type=Path, metavar="PATH", help="print the held-out loss of a model, and end")
    arguments = parser.parse_args()
    if arguments.batches < 1:
        parser.error("--batches must be at least 1")
    return arguments


def main() -> None:
    """Train, tune, evaluate, report."""
    arguments = parse_arguments()
    # So small a model gains nothing from more threads, and loses much to them where others use the processors.
    torch.set_num_threads(1)
    training_text, held_out = load_text()
    if arguments.loss_of is not None:
        print(f"held-out loss {evaluate(arguments.loss_of, held_out)!r}")
        return
    folder, chart = arguments.dir / "ckpts", arguments.dir / "curve.png"
    prepare_folder(folder)
    torch.manual_seed(arguments.seed)
    watcher = Watcher(folder, arguments.dir / "watched", plan(arguments.batches)[1], arguments.batches)
    try:
        dense = train(training_text, folder, arguments.batches, arguments.seconds)
    except BaseException:
        watcher.stop()
        raise

    checkpoints = {int(path.stem.removeprefix("step-")): path for path in sorted(folder.glob("*.pt"))}
    steps = sorted(checkpoints)
    half_lives = [half_life for half_life in NICE if steps[0] <= half_life <= steps[-1]]
    watched = watcher.finish(half_lives, early=steps[-1] < arguments.batches)
    tuned = tune(folder, arguments.dir / "best.safetensors", half_lives)
    others = {"watched": watched, **average_otherwise(folder, arguments.dir, half_lives, dense)}
    log("evaluating the other averages, and the checkpoints for the chart")
    losses = {"files": {half_life: tuned[f"{half_life}ba"] for half_life in half_lives}}
    losses |= {road: {h: evaluate(path, held_out) for h, path in each.items()} for road, each in others.items()}
    points = min(CURVE_POINTS, len(steps))
    shown = {steps[round((k + 1) * len(steps) / points) - 1] for k in range(points)}
    curve = {step: evaluate(checkpoints[step], held_out) for step in sorted(shown)}
    curve[steps[-1]] = tuned["last"]
    print_table(steps[-1], tuned["last"], losses)
    draw(chart, curve, losses)
    print(f"chart: {chart}")


if __name__ == "__main__":
    main()
