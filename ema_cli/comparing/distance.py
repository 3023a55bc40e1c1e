"""How far apart two checkpoints are: sums over the values of their tensors, and the numbers that follow from them.

In float64, whatever the stored dtypes. For one = [3, 0] and other = [0, 4]: the squares are 25, 9 and 16, so that the
distance is 5, the norms are 3 and 4, and the relative distance is 5/4; the product is 0, so is the cosine; the largest
difference is 4.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ema_cli.dataclass import dataclass
from ema_cli.folding.kernel.floats import Floats


@dataclass(frozen=True, slots=True)
class Distance:
    """How far `one` is from `other`. Numbers are NaN where the values are.

    Attributes:
        distance: the norm of the difference.
        norm_one, norm_other: the norm of each.
        relative: the distance divided by `norm_other`; None where that is 0, unless the distance is 0 too: then 0.
        cosine: of the angle between the two; None where a norm is 0.
        largest: the largest difference of two values.
    """

    distance: float
    norm_one: float
    norm_other: float
    relative: float | None
    cosine: float | None
    largest: float


@dataclass(slots=True)
class DistanceSums:
    """Sums over the values of one tensor or of many, for one checkpoint and N others.

    squares [3, N]: of |one - other|, |one| and |other|.
    products [N]: of one and other.
    largest [N]: difference of two values.
    equal [N]: whether all bytes are equal.
    non_finite [2, N]: how many elements are NaN or infinite, in one and in other. An infinity that both have at the
        same place (an attention mask) does not count, and adds 0 to the sums; with any other they are NaN or infinite.
    """

    squares: Floats
    products: Floats
    largest: Floats
    equal: NDArray[np.bool_]
    non_finite: NDArray[np.int64]

    @classmethod
    def zero(cls, others: int) -> DistanceSums:
        """Return the sums of no tensor."""
        return cls(
            squares=np.zeros((3, others)),
            products=np.zeros(others),
            largest=np.zeros(others),
            equal=np.ones(others, dtype=bool),
            non_finite=np.zeros((2, others), dtype=np.int64),
        )

    def add(self, more: DistanceSums) -> None:
        """Add the sums of further values."""
        with np.errstate(all="ignore"):
            self.squares += more.squares
            self.products += more.products
            np.maximum(self.largest, more.largest, out=self.largest)
        self.equal &= more.equal
        self.non_finite += more.non_finite

    def add_block(self, index: int, block: ValueBlock, other: Floats) -> None:
        """Add a block of `one`, and the values of other number `index` at the same place."""
        one = block.values
        with np.errstate(all="ignore"):
            sums = _block_sums(block, other)
            if not all(map(math.isfinite, sums)):
                shared = ~np.isfinite(one) & (one == other)
                if shared.any():
                    one, other = np.where(shared, 0.0, one), np.where(shared, 0.0, other)
                    sums = _block_sums(ValueBlock.of(one, block.scratch, block.components), other)
                for row, values in enumerate((one, other)):
                    finite = np.isfinite(values).reshape(-1, block.components).all(axis=1)
                    self.non_finite[row, index] += np.count_nonzero(~finite)
            self.squares[:, index] += sums[:3]
            self.products[index] += sums[3]
            self.largest[index] = np.maximum(self.largest[index], sums[4])

    def distances(self) -> list[Distance]:
        """Return the distance to each of the others."""
        return [self._distance(index) for index in range(len(self.products))]

    def _distance(self, index: int) -> Distance:
        distance, norm_one, norm_other = map(math.sqrt, self.squares[:, index])
        relative = distance / norm_other if norm_other else (None if distance else 0.0)
        cosine = None
        if norm_one != 0 and norm_other != 0:
            cosine = float(self.products[index]) / norm_one / norm_other
            if not math.isnan(cosine):
                cosine = 1.0 if distance == 0 else min(max(cosine, -1.0), 1.0)
        return Distance(
            distance=distance,
            norm_one=norm_one,
            norm_other=norm_other,
            relative=relative,
            cosine=cosine,
            largest=float(self.largest[index]),
        )


@dataclass(frozen=True, slots=True)
class ValueBlock:
    """A block of values of one checkpoint, to be compared with those of others.

    Attributes:
        values: in float64, [n]; a complex element is two of them.
        squares: the sum of their squares.
        scratch: memory for what is computed on the way, [2, n].
        components: how many values make one element.
    """

    values: Floats
    squares: float
    scratch: Floats
    components: int

    @classmethod
    def of(cls, values: Floats, scratch: Floats, components: int) -> ValueBlock:
        """Return a block of these values."""
        return cls(values, _sum_products(values, values, scratch[1]), scratch, components)


def _block_sums(block: ValueBlock, other: Floats) -> tuple[float, ...]:
    """Return the sums of squares of the difference and of both, of their products, and the largest difference."""
    one, (difference, product) = block.values, block.scratch
    np.subtract(one, other, out=difference)
    sums = (
        _sum_products(difference, difference, product),
        block.squares,
        _sum_products(other, other, product),
        _sum_products(one, other, product),
    )
    if block.components == 2:
        return *sums, float(np.hypot(difference[0::2], difference[1::2]).max())
    return *sums, float(np.abs(difference, out=difference).max())


def _sum_products(left: Floats, right: Floats, scratch: Floats) -> float:
    """Return the sum of products. Not a dot product of BLAS: that adds in another order on each processor."""
    with np.errstate(all="ignore"):
        np.multiply(left, right, out=scratch)
        return float(np.add.reduce(scratch))
