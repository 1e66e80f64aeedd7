"""Too many rejects: the limit is a decimal number, and what the message advises is accepted."""

import re
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet.errors import UserError
from alexnet.shards.decode import Reason
from alexnet.shards.format import Shard
from alexnet.shards.write import ShardResult
from pipelines.preprocessing.job import RejectCounter


def count(rejected: int, images: int, max_fraction: float, reason: str = "truncated") -> None:
    """Count a shard with so many rejects."""
    reject = {"key": "train/a/x", "split": "train", "reason": reason, "detail": ""}
    result = ShardResult(Shard("train/part-00000.parquet", 0, 0, ""), (reject,) * rejected)
    RejectCounter([], max_fraction, images).add(result)


counts = st.integers(1, 300).flatmap(
    lambda images: st.tuples(st.integers(1, images), st.just(images))
)


def test_29_of_100_are_not_more_than_0_29() -> None:
    count(29, 100, 0.29)
    with pytest.raises(UserError, match=r"30 of 100 .* --max-reject-fraction 0\.29;"):
        count(30, 100, 0.29)


@pytest.mark.parametrize("images", [10, 100, 1000])
def test_the_limit_is_the_decimal_number_that_was_given(images: int) -> None:
    for number in range(images):
        fraction = float(f"{number / images:.3f}")
        count(number, images, fraction)
        with pytest.raises(UserError):
            count(number + 1, images, fraction)


@given(counts)
def test_the_advised_fraction_is_accepted(rejected_of: tuple[int, int]) -> None:
    rejected, images = rejected_of
    with pytest.raises(UserError) as caught:
        count(*rejected_of, 0)
    if 2 * rejected >= images:
        assert "or more" not in str(caught.value)
        return
    (advised,) = re.findall(r"give --max-reject-fraction (\S+) or more", str(caught.value))
    assert 0 < float(advised) <= 1
    count(*rejected_of, float(advised))


@pytest.mark.parametrize("reason", get_args(Reason))
def test_every_reason_has_its_remedy(reason: str) -> None:
    with pytest.raises(UserError) as caught:
        count(3, 100, 0.01, reason)
    assert f"3 of them are rejected as {reason}" in str(caught.value)
    # Images that were never copied are copied, not left out.
    advises_more = "or more" in str(caught.value)
    assert advises_more is (reason not in ("empty", "not downloaded"))
