"""Intervals and tests against values computed by hand, and against their definitions."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from alexnet.significance import PairedCounts, chance_p_value, p_in_words, wilson_interval


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17, 1998, 857-872, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_published_wilson_intervals(count: int, total: int, low: float, high: float) -> None:
    assert wilson_interval(count, total) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 60_000), st.floats(0, 1))
def test_wilson_intervals_against_scipy(total: int, share: float) -> None:
    count = round(share * total)
    expected = binomtest(count, total).proportion_ci(method="wilson")
    low, high = wilson_interval(count, total)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= low <= count / total <= high <= 1


def exact_two_sided(first: int, second: int) -> Fraction:
    """The sum of the probabilities in both tails, in whole numbers."""
    discordant = first + second
    tail = sum(math.comb(discordant, k) for k in range(min(first, second) + 1))
    return min(Fraction(1), Fraction(2 * tail, 2**discordant))


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [(0, 0, 1.0), (0, 5, 2 / 32), (0, 6, 2 / 64), (1, 6, 16 / 128), (3, 3, 1.0), (12, 2, 0.01294)],
)
def test_mcnemar_by_hand(first: int, second: int, p: float) -> None:
    counts = PairedCounts(both=7, only_first=first, only_second=second, neither=1)
    assert counts.p_value == pytest.approx(p, abs=5e-6)


@given(st.integers(0, 90), st.integers(0, 90), st.integers(0, 90), st.integers(1, 90))
def test_paired_counts(both: int, first: int, second: int, neither: int) -> None:
    counts = PairedCounts(both, first, second, neither)
    assert counts.p_value == pytest.approx(float(exact_two_sided(first, second)), rel=1e-9)
    swapped = PairedCounts(both, second, first, neither)
    assert swapped.p_value == counts.p_value
    assert swapped.difference == -counts.difference
    low, high = counts.interval
    assert -1 <= low <= counts.difference <= high <= 1
    assert swapped.interval == pytest.approx((-high, -low))


def test_the_interval_of_a_difference_by_hand() -> None:
    """48 and 38 of 50 are right; ad - bc = -24, so the correlation is -24 / sqrt(48·2·38·12)."""
    counts = PairedCounts(both=36, only_first=12, only_second=2, neither=0)
    phi = -24 / math.sqrt(48 * 2 * 38 * 12)
    (l1, u1), (l2, u2) = (binomtest(k, 50).proportion_ci(method="wilson") for k in (48, 38))
    down = math.sqrt((0.76 - l2) ** 2 - 2 * phi * (0.76 - l2) * (u1 - 0.96) + (u1 - 0.96) ** 2)
    up = math.sqrt((u2 - 0.76) ** 2 - 2 * phi * (u2 - 0.76) * (0.96 - l1) + (0.96 - l1) ** 2)
    assert counts.difference == pytest.approx(-0.2)
    assert counts.interval == pytest.approx((-0.2 - down, -0.2 + up))
    assert counts.interval == pytest.approx((-0.3404, -0.0569), abs=2e-4)


def test_an_interval_contains_the_true_difference_in_19_of_20_samples() -> None:
    random = np.random.default_rng(16)
    rates = (0.5, 0.08, 0.12, 0.3)
    samples = random.multinomial(200, rates, 1500)
    ends = [PairedCounts(*map(int, sample)).interval for sample in samples]
    covered = np.mean([low <= 0.04 <= high for low, high in ends])
    assert 0.93 <= covered <= 0.975


def test_counts_of_two_models() -> None:
    first = np.array([True, True, False, False, True])
    second = np.array([True, False, True, False, True])
    assert PairedCounts.of(first, second) == PairedCounts(2, 1, 1, 1)


def test_chance_by_hand() -> None:
    """Of 18 images of three classes, 6 are right by chance; at least 12 are very rarely."""
    labels = np.repeat([0, 1, 2], 6)
    tail = sum(math.comb(18, k) * 2 ** (18 - k) for k in range(6, 19)) / 3**18
    assert chance_p_value(6, labels) == pytest.approx(tail)
    assert chance_p_value(6, labels) > 0.5
    assert chance_p_value(12, labels) < 0.01
    assert chance_p_value(0, labels) == 1


def test_chance_is_the_share_of_the_most_frequent_class() -> None:
    """A model that always names a class that 80 of 100 images have is no better than chance."""
    labels = np.array([1] * 80 + [0] * 20)
    assert chance_p_value(80, labels) > 0.5
    assert chance_p_value(95, labels) < 1e-4


def test_one_class_is_always_guessed() -> None:
    assert chance_p_value(9, np.zeros(9, np.int64)) == 1


@pytest.mark.parametrize(
    ("p", "words"),
    [(1.0, "= 1"), (0.03125, "= 0.0312"), (1e-6, "= 1e-06"), (9e-7, "< 1e-6"), (0.0, "< 1e-6")],
)
def test_no_p_value_is_said_to_be_zero(p: float, words: str) -> None:
    assert p_in_words(p) == words
