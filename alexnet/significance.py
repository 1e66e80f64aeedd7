"""Whether a difference of error rates is more than chance: intervals and exact tests.

Rates and probabilities are fractions, 0 to 1. Intervals cover 95 %.

- ``wilson_interval``: E. B. Wilson, JASA 22, 1927.
- ``PairedCounts.p_value``: the exact test of McNemar, Psychometrika 12, 1947, two-sided.
- ``PairedCounts.interval``: method 10 of R. G. Newcombe, Statistics in Medicine 17, 1998,
  2635-2650. It is made of Wilson's intervals, so it stays valid with few images.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

Z = 1.959963984540054
"""The normal distribution's 97.5 % quantile: two-sided intervals of 95 %."""


class Interval(NamedTuple):
    """The ends of an interval of 95 %."""

    low: float
    high: float


def wilson_interval(count: int, total: int) -> Interval:
    """The interval of the rate of which ``count`` of ``total`` independent cases are a sample."""
    assert 0 <= count <= total > 0
    rate, z2 = count / total, Z * Z
    centre = (rate + z2 / (2 * total)) / (1 + z2 / total)
    half = Z * math.sqrt(rate * (1 - rate) / total + z2 / (4 * total**2)) / (1 + z2 / total)
    # With a rate of 0 or 1 that end is exact, except for rounding.
    low = 0.0 if count == 0 else max(0.0, centre - half)
    return Interval(low, 1.0 if count == total else min(1.0, centre + half))


def chance_p_value(correct: int, labels: NDArray[np.integer]) -> float:
    """How probable as many correct predictions are, or more, if they don't depend on the images.

    Predictions that don't depend on the images are correct at most as often as the most frequent
    class occurs: that is the rate of the exact binomial test. With one class the result is 1.

    Args:
        correct: number of correct predictions.
        labels: (N,), the true labels.
    """
    chance = float(np.bincount(labels).max() / len(labels))
    return float(binom.sf(correct - 1, len(labels), chance))


def p_in_words(p: float) -> str:
    """The p-value after ``p``: ``= 0.0312``, or ``< 1e-6``, since none is 0."""
    return f"= {p:.3g}" if p >= 1e-6 else "< 1e-6"


@dataclass(frozen=True, slots=True)
class PairedCounts:
    """How many images two models classify correctly, together and each alone."""

    both: int
    only_first: int
    only_second: int
    neither: int

    @classmethod
    def of(cls, first: NDArray[np.bool_], second: NDArray[np.bool_]) -> "PairedCounts":
        """Count from whether each model is right, (N,) and (N,), for the same images."""
        assert first.shape == second.shape
        parts = (first & second, first & ~second, ~first & second, ~first & ~second)
        return cls(*(int(part.sum()) for part in parts))

    @property
    def images(self) -> int:
        """The number of images."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def difference(self) -> float:
        """The first model's error rate minus the second's: positive if the second is better."""
        return (self.only_second - self.only_first) / self.images

    @property
    def p_value(self) -> float:
        """How probable a difference as large, or larger, is between models that are equally good.

        Only images that exactly one of the models classifies correctly tell them apart. Of equally
        good models, each is the right one for half of them: a two-sided exact binomial test.
        """
        fewer = min(self.only_first, self.only_second)
        return min(1.0, 2 * float(binom.cdf(fewer, self.only_first + self.only_second, 0.5)))

    @property
    def interval(self) -> Interval:
        """The interval of ``difference``."""
        n, first, second = self.images, self.both + self.only_first, self.both + self.only_second
        low1, high1 = wilson_interval(first, n)
        low2, high2 = wilson_interval(second, n)
        rate1, rate2, phi = first / n, second / n, self._correlation()

        def distance(of_second: float, of_first: float) -> float:
            square = of_second**2 - 2 * phi * of_second * of_first + of_first**2
            return math.sqrt(max(0.0, square))

        return Interval(
            self.difference - distance(rate2 - low2, high1 - rate1),
            self.difference + distance(high2 - rate2, rate1 - low1),
        )

    def _correlation(self) -> float:
        """The correlation of the two models' being right, corrected for continuity."""
        a, b, c, d = self.both, self.only_first, self.only_second, self.neither
        margins = (a + b) * (c + d) * (a + c) * (b + d)
        product = float(a * d - b * c)
        if product > 0:
            product = max(product - self.images / 2, 0)
        return product / math.sqrt(margins) if margins else 0.0
