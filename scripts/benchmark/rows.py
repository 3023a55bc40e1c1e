"""What is measured: the rows of the table, who takes part in each, and the targets."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20
MEMORY = 120 * MIB  # of all processes together, and
MEMORY_PER_NAME = 1024  # for each tensor name
BEFORE = "before"  # another build of ema-cli, which --before names
PEERS = ("naive", "fairseq", "timm", "mergekit")
OTHER_HALF_LIVES = ("25ba", "50ba", "150ba", "200ba", "800ba", "1600ba", "3200ba")  # beside that of the others


@dataclass(frozen=True)
class Target:
    """How long `of` may take, as a multiple of the fastest of `against`, or in seconds against nobody."""

    of: str
    against: tuple[str, ...]
    at_most: float

    @property
    def words(self) -> str:
        """Return it as the table has it."""
        if not self.against:
            return f"<= {self.at_most:g} s"
        if len(self.against) == 1:
            return f"<= {self.at_most:g} x {'the build ' * (self.against == (BEFORE,))}{self.against[0]}"
        return f"<= {self.at_most:g} x {'best peer' if set(self.against) <= set(PEERS) else 'faster limit'}"


@dataclass(frozen=True)
class Row:
    """A set, measured in one way. `reference` is a set on which ema-cli runs beside it, in the same rounds."""

    key: str
    data: str
    targets: tuple[Target, ...] = ()
    peers: tuple[str, ...] = ()
    limits: tuple[str, ...] = ("limit",)
    reference: str | None = None
    kind: str = "average"  # or half-lives, latency, manifest, checksum, numpy, stored, like-input, engines, tune, watch
    cold: bool = False
    rounds: int | None = None  # where another number is enough
    few: tuple[str, ...] = ()  # the peers at the small scale, each in one row at least: it is to take a minute
    full_only: bool = False
    without: tuple[tuple[str, str], ...] = ()  # peers that cannot take part, and why

    @property
    def beside_before(self) -> bool:
        """Return whether the build before takes part, too."""
        return any(BEFORE in target.against for target in self.targets)


def _below(at_most: float, *against: str) -> Target:
    return Target("ema-cli", against, at_most)


_COLD = ("limit", "limit x4")
_NESTED = (("mergekit", "it reads no state dict that lies inside another dict"),)
_TOO_LARGE = (("naive", "it holds the whole model in float32, which leaves no memory to keep the inputs in"),)

# In the order in which they are measured: what shares data stands together.
ROWS = (
    Row("A", "A", (_below(0.4, BEFORE), _below(0.9, "limit"), _below(0.15, *PEERS)), PEERS, few=("naive", "mergekit")),
    Row("A numpy", "A", (_below(1, BEFORE),), limits=(), kind="numpy"),
    Row("A cold", "A", (_below(1.15, *_COLD),), limits=_COLD, cold=True, full_only=True),
    Row("H", "A", (_below(0.5, BEFORE), _below(0.85, "limit")), reference="A", kind="half-lives"),
    Row("manifest", "A", (_below(1.2, "reference"),), reference="A", kind="manifest"),
    Row("checksum", "A", limits=("limit", "sha256sum"), reference="A", kind="checksum"),
    Row("tune", "A", (_below(1.1, "reference"),), limits=(), reference="A", kind="tune"),
    Row("watch", "A", (_below(2, "limit"),), kind="watch"),
    Row("S", "S", (_below(1.2, "reference"),), reference="A", kind="stored"),
    Row("A16", "A16", (_below(0.15, BEFORE), _below(1.15, "reference")), reference="A"),
    Row("C", "C", (_below(1.1, "reference"),), PEERS[:3], reference="A", few=("fairseq",), without=_NESTED),
    Row("E", "E", (_below(1.1, "reference"),), ("naive", "mergekit"), reference="A"),
    Row("I", "I", (_below(1.3, "reference"),), ("naive",), reference="A"),
    Row("J", "J", (_below(1.3, "reference"),), reference="A"),
    Row("K", "K", (_below(1.3, "reference"),), limits=(), reference="A"),
    Row("like-input", "A", (_below(1.2, "reference"),), limits=(), reference="A", kind="like-input"),
    Row("latency", "A", (_below(1.5, "reference"),), limits=(), reference="A", kind="latency", rounds=3),
    Row("engines", "A", (_below(1.25, "reference"),), limits=(), reference="A", kind="engines", full_only=True),
    Row("B", "B", (_below(0.9, "limit"), _below(0.3, *PEERS)), PEERS),
    Row("Z", "Z", (_below(1.3, "reference"),), limits=(), reference="B"),
    Row("D", "D", (_below(0.18, *PEERS),), PEERS, few=("timm",)),
    Row("headers", "P", (_below(0.2, BEFORE),), rounds=2),
    Row("G1", "G1", (_below(2.2, "reference"),), ("naive",), reference="G1-half"),
    Row("G2", "G2", (_below(2.2, "reference"),), ("naive",), reference="G2-half"),
    Row("G3", "G3", without=_TOO_LARGE),
    Row("F cold", "F", (_below(1.15, *_COLD),), limits=_COLD, cold=True, full_only=True, rounds=3),
)
START_UP = "start-up"
# As the report has them.
KEYS = (*sorted((row.key for row in ROWS), key=lambda key: (key[0].islower(), key)), START_UP)


def memory_limit(names: int) -> int:
    """Return what all processes together may take, in bytes."""
    return MEMORY + names * MEMORY_PER_NAME


def chosen(asked: str | None, *, full: bool) -> list[str]:
    """Return the keys of the rows that are asked for: `A,B`, or all that belong to the scale.

    Raises:
        ValueError: for a key that is none. G stands for G1, G2 and G3; `table` for all that show what a change of the
            fold costs or saves; `pieces` for models in parts, and for what is written over the newest.
    """
    if asked is None:
        return [*(row.key for row in ROWS if full or not row.full_only), START_UP]
    further = ("checksum", "engines", "latency", "like-input", "tune", "watch", "J", "K", "Z", "G1", "G2", "G3")
    groups = {
        "G": further[9:],
        "pieces": ("I", "J", "K", "Z", "like-input"),
        "table": tuple(key for key in KEYS if key not in further),
    }
    found: set[str] = set()
    for word in (each.strip() for each in asked.split(",")):
        keys = groups.get(word, tuple(key for key in KEYS if key == word))
        if not keys:
            raise ValueError(f"'{word}' is none of {', '.join(KEYS)}")
        found.update(keys)
    return [key for key in KEYS if key in found]
