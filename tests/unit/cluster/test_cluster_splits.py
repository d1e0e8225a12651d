from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InvalidRequest
from cluster.splits import WHOLE_BP, Arm, TrafficSplit, bucket_of


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=6))
def test_a_split_exists_only_if_its_shares_make_a_whole(shares):
    arms = tuple(Arm(str(i + 1), share) for i, share in enumerate(shares))
    if sum(shares) == WHOLE_BP:
        assert TrafficSplit(arms).arms == arms
    else:
        with pytest.raises(InvalidRequest, match="add up"):
            TrafficSplit(arms)


@pytest.mark.parametrize(
    "text", ["", "1", "1=", "1=x", "1=50", "1=50,1=50", "0=100", "1=nan,2=1", "1=-5,2=105", "1=0.001,2=99.999", "1=inf"]
)
def test_a_malformed_split_is_refused(text):
    with pytest.raises(InvalidRequest):
        TrafficSplit.parse(text)


def test_percent_become_basis_points():
    assert TrafficSplit.parse("1=90.25, 2=9.75").arms == (Arm("1", 9025), Arm("2", 975))


@given(st.text(max_size=40), st.text(max_size=80))
def test_the_same_key_meets_the_same_version(salt, key):
    split = TrafficSplit.parse("1=50,2=50", salt)
    assert split.pick(key) == split.pick(key) == split.pick(key.encode())


@given(st.text(max_size=40), st.integers(0, 100), st.integers(0, 100))
def test_a_key_that_met_the_canary_keeps_it_as_the_canary_grows(key, a, b):
    small, large = sorted((a, b))
    before = TrafficSplit.parse(f"1={100 - small},2={small}", "s").pick(key)
    after = TrafficSplit.parse(f"1={100 - large},2={large}", "s").pick(key)
    assert before == "1" or after == "2"


def test_shares_over_many_keys_are_those_intended():
    split = TrafficSplit.parse("1=90,2=10", "salt")
    seen = Counter(split.pick(f"user-{i}") for i in range(20_000))
    assert abs(seen["2"] / 20_000 - 0.10) < 0.01


def test_shares_without_a_key_are_those_intended():
    split = TrafficSplit.parse("1=75,2=25")
    seen = Counter(split.pick(None) for _ in range(20_000))
    assert abs(seen["2"] / 20_000 - 0.25) < 0.02


def test_another_salt_shuffles_the_keys():
    keys = [f"user-{i}" for i in range(5000)]
    both = sum(bucket_of("a", k) < 1000 and bucket_of("b", k) < 1000 for k in keys)
    assert both / len(keys) < 0.02


def test_a_version_without_share_gets_nothing():
    split = TrafficSplit.parse("1=100,2=0")
    assert split.versions == ("1",)
    assert {split.pick(f"{i}") for i in range(2000)} == {"1"}
