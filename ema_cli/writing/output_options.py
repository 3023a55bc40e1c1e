"""The form of an output, as a user may choose it."""

from __future__ import annotations

from typing import TypedDict, Unpack

from ema_cli._version import __version__
from ema_cli.dataclass import dataclass
from ema_cli.dtypes import DTYPES, DType, output_dtype
from ema_cli.errors import UsageError, option
from ema_cli.formats.mark import DROP, EXACT_LORA, LIKE_INPUT
from ema_cli.kinds import as_count, as_size, as_text, check_flags, check_texts
from ema_cli.manifest.types import RecipeRow

OPTIMIZER = "optimizer"  # what --drop leaves out


class OutputKeywords(TypedDict, total=False):
    """The form of an output, in words.

    Attributes:
        dtype: the dtype of floating tensors, as "bfloat16"; they may then differ between checkpoints. Default: as in
            the newest.
        max_shard_size: most bytes of tensors in one file of a folder, as "5GB". Default: the shards of the newest.
        allow_non_finite: let NaN and infinity pass.
        like_input: write the newest checkpoint over again, with averages in the place of its weights.
        drop: with like_input, "optimizer" leaves its state out.
        exact_lora: of an adapter, average the products BA, and write A and B of this rank.
    """

    dtype: str | DType | None
    max_shard_size: int | str | None
    allow_non_finite: bool
    like_input: bool
    drop: str | None
    exact_lora: int | None


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """The form of an output, as a user may choose it.

    Attributes:
        dtype: that of the floating tensors, which may then differ between checkpoints; None: as in the newest.
        max_shard_size: most bytes of tensors in one file of a folder; None: the shards of the newest checkpoint.
        allow_non_finite: whether NaN and infinity are written, too.
        like_input: whether the output is the newest checkpoint, with averages in the place of its weights.
        drop: what of that is left out: OPTIMIZER, or nothing.
        exact_lora: the rank of A and B whose product is the average of an adapter's products; None: each is averaged.
        version: the version of ema-cli that the files name. Only a comparison with what another version wrote sets it.
    """

    dtype: DType | None = None
    max_shard_size: int | None = None
    allow_non_finite: bool = False
    like_input: bool = False
    drop: str | None = None
    exact_lora: int | None = None
    version: str = __version__

    @classmethod
    def parse(cls, **keywords: Unpack[OutputKeywords]) -> OutputOptions:
        """Read what a user gives.

        Raises:
            UsageError: for a dtype that cannot be written, a text that is no size, and what the input decides.
        """
        dtype, size = keywords.get("dtype"), keywords.get("max_shard_size")
        for name, value in (("dtype", dtype), ("max_shard_size", size)):
            if keywords.get("like_input") and value is not None:
                raise UsageError(
                    f"is that of the input with {option('like_input', True)}", option=name, hint="leave out one"
                )
        check_flags(**{name: keywords.get(name, False) for name in ("allow_non_finite", "like_input")})
        drop = keywords.get("drop")
        check_texts(drop=drop)
        if drop not in (None, OPTIMIZER):
            raise UsageError(f"'{drop}' is nothing that can be left out", option="drop", hint=option("drop", OPTIMIZER))
        if drop is not None and not keywords.get("like_input"):
            like_input = option("like_input", True)
            raise UsageError(f"is for {like_input}: other outputs hold the weights alone", option="drop")
        rank = keywords.get("exact_lora")
        _check_exact(rank, keywords)
        return cls(
            dtype if dtype is None or isinstance(dtype, DType) else output_dtype(as_text(dtype, "dtype")),
            None if size is None else as_size(size, "max_shard_size"),
            keywords.get("allow_non_finite", False),
            keywords.get("like_input", False),
            drop,
            rank,
        )

    def to_dict(self) -> dict[str, object]:
        """Return the options as a manifest has them."""
        return {
            "dtype": self.dtype.name if self.dtype else None,
            "max_shard_size": self.max_shard_size,
            "allow_non_finite": self.allow_non_finite,
            **({LIKE_INPUT: True} if self.like_input else {}),
            **({DROP: self.drop} if self.drop is not None else {}),
            **({EXACT_LORA: self.exact_lora} if self.exact_lora is not None else {}),
        }

    @classmethod
    def from_dict(cls, data: RecipeRow) -> OutputOptions:
        """Read what `to_dict` returned, in the recipe of a manifest."""
        dtype = DTYPES[data["dtype"]] if data["dtype"] else None
        like_input, drop, rank = data.get("like_input", False), data.get("drop"), data.get("exact_lora")
        return cls(dtype, data["max_shard_size"], data["allow_non_finite"], like_input, drop, rank)


def _check_exact(rank: int | None, keywords: OutputKeywords) -> None:
    """Raise a UsageError for a rank of A and B that makes no sense, or with which another option makes none."""
    if rank is None:
        return
    as_count(rank, "exact_lora", "rows")
    for name, fact in (
        ("like_input", "writes A and B of the shapes that the input has"),
        ("allow_non_finite", "lets NaN pass, and a matrix with NaN cannot be factored"),
    ):
        if keywords.get(name):
            raise UsageError(f"{option(name, True)} {fact}", option="exact_lora", hint="leave out one")
