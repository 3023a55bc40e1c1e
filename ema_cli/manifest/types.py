"""The types of a manifest, for the type checker; the schema in schemas/ describes the same for files."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict


class Tool(TypedDict):
    name: str
    version: str


ClockRow = TypedDict("ClockRow", {"value": str, "from": str})
_Source = TypedDict("_Source", {"from": Literal["raw", "stored"]})


class RecipeRow(_Source):
    """The recipe, resolved. Times are text, as `50ba`."""

    law: str
    half_life: str | None
    smoothing: float | None
    profile: str | None
    sigma_rel: float | None
    window: NotRequired[str | None]
    lag: NotRequired[float]
    multiplier: NotRequired[float]
    bias_power: NotRequired[float]
    ema_power: NotRequired[float]
    extrapolate: NotRequired[float]
    extrapolate_from: NotRequired[str]
    coefficients: NotRequired[dict[str, float]]
    any_sum: NotRequired[bool]
    base: NotRequired[str]
    update_interval: str
    start: str | None
    stop: str | None
    last: int | None
    bias_correction: bool
    exclude: NotRequired[list[str]]
    skip_damaged: NotRequired[bool]
    epoch_length: str | None
    spacing: str | None
    name_clock: NotRequired[str | None]
    clock_key: NotRequired[list[str]]
    ignore_clocks: NotRequired[bool]
    key: str | None
    weights: Literal["raw", "ema"] | None
    component: str | None
    keep_prefix: bool
    masters: NotRequired[bool]
    copy: list[str]
    dtype: str | None
    format: Literal["safetensors", "pt", "ckpt", "dcp", "input"]
    folder: bool
    max_shard_size: int | None
    allow_non_finite: bool
    like_input: NotRequired[bool]
    drop: NotRequired[str]
    exact_lora: NotRequired[int]
    merge_into: NotRequired[bool]


class InputFacts(TypedDict):
    """What is the same of a checkpoint in every average that it enters."""

    name: str
    clocks: dict[str, ClockRow]
    format: str
    trainer: str | None
    bytes: int


class InputRow(InputFacts):
    """A checkpoint that entered, oldest first. `fingerprint` is None if its weight is 0: it was not read."""

    clock: str
    weight: float
    fingerprint: str | None
    blocks: NotRequired[list[str]]


class OutputRow(TypedDict):
    """A file that was written."""

    name: str
    bytes: int
    sha256: str


class TensorRow(TypedDict):
    """A tensor that was written; `why`: the reason for a copy, None if it was averaged."""

    name: str
    dtype: str
    shape: list[int]
    bytes: int
    averaged: bool
    why: str | None
    non_finite: bool


class FingerprintKind(TypedDict):
    """The method of the fingerprints of inputs."""

    what: str
    samples: int
    sample_bytes: int


class ChecksumKind(TypedDict):
    """The method of the checksums of all bytes read."""

    what: str
    block_bytes: int


class ErrorRow(TypedDict):
    """The distance of combined stored averages from the wanted profile, and the least possible one, both relative."""

    relative_error: float
    least_error: float


class FactoredRow(TypedDict):
    """How far A and B are from the average of their products, relative; and the module that is off most."""

    relative_error: float
    furthest: str
    furthest_error: float


class CandidateRow(TypedDict):
    """A candidate of `tune`: its half-life or `last`, and its metric each time it was evaluated, or why there is none.

    `same_as`: the candidate with the same weights, which was evaluated in its place.
    """

    name: str
    values: list[float]
    failed: NotRequired[str]
    same_as: NotRequired[str]


class TuneRow(TypedDict):
    """How the half-life was chosen. Nobody can check it without the evaluation."""

    command: str | None
    metric: str | None
    maximize: bool
    winner: str
    candidates: list[CandidateRow]


class WatchRow(TypedDict):
    """How the average was kept up with a training: `gaps` are what was missed, in words.

    Each input was folded when it was there, into float32; many are gone now.
    """

    gaps: list[str]


class Manifest(TypedDict):
    """The record of one average. While it is made it has no `tensors`: they are written one after another."""

    schema_version: int
    tool: Tool
    libraries: dict[str, str]
    recipe: RecipeRow
    inputs: list[InputRow]
    fingerprint: FingerprintKind
    checksum: ChecksumKind | None
    outputs: list[OutputRow]
    tensors: NotRequired[list[TensorRow]]
    effective_checkpoints: float
    mean_age: str
    approximation: ErrorRow | None
    tune: NotRequired[TuneRow]
    watch: NotRequired[WatchRow]
    warnings: list[str]
    notes: NotRequired[list[str]]  # of older manifests they are among the warnings
    classes: NotRequired[list[str]]
    exact_lora: NotRequired[FactoredRow]
