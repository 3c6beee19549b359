"""A made-up table of films and viewers with every kind of column and every kind of gap."""

import numpy as np
import pytest

from ftmamba.data.fitting import fit_extractor
from modeling_ftmamba.processing_ftmamba import FTMambaFeatureExtractor

USER_COLUMNS = [
    {"name": "age", "kind": "numeric"},
    {"name": "income", "kind": "numeric", "scaling": "quantile"},
    {"name": "job", "kind": "categorical"},
    {"name": "zip", "kind": "categorical", "min_count": 3, "hash_buckets": 5},
    {"name": "member", "kind": "categorical"},
    {"name": "joined", "kind": "timestamp"},
]
ITEM_COLUMNS = [
    {"name": "genres", "kind": "categories", "separator": "|"},
    {"name": "tags", "kind": "categories", "hash_buckets": 2, "max_vocabulary": 4},
    {"name": "released", "kind": "timestamp"},
    {"name": "text", "kind": "vector"},
    {"name": "popularity_7d", "kind": "numeric", "popularity_days": 7},
]
WORDS = ["Ärzte", "b", "c c", "日本", "e", "", "f", "x" * 30]


def gaps(rng, values, rate=0.2):
    return [None if rng.random() < rate else value for value in values]


def make_users(rng, n):
    return {
        "age": gaps(rng, rng.integers(10, 90, n).tolist()),
        "income": gaps(rng, (rng.standard_normal(n) * 1e4).tolist()),
        "job": gaps(rng, [WORDS[k] for k in rng.integers(0, 8, n)]),
        "zip": gaps(rng, [f"{k:05}" for k in rng.integers(0, 40, n)]),
        "member": gaps(rng, [bool(k) for k in rng.integers(0, 2, n)]),
        "joined": gaps(rng, rng.integers(-(10**9), 2 * 10**9, n).tolist()),
        "not_in_schema": list(range(n)),
    }


def make_items(rng, n):
    def members(longest):
        return [WORDS[k] for k in rng.integers(0, 8, rng.integers(0, longest))]

    return {
        "genres": gaps(rng, ["|".join(members(4)) for _ in range(n)]),
        "tags": gaps(rng, [members(5) for _ in range(n)]),
        "released": gaps(rng, [f"20{k:02}-0{1 + k % 9}-1{k % 9}" for k in rng.integers(0, 30, n)]),
        "text": gaps(rng, rng.standard_normal((n, 3)).tolist()),
        "popularity_7d": gaps(rng, np.log1p(rng.integers(0, 9, n)).tolist()),
    }


def assert_same(first, second):
    """Compare tensors bit for bit."""
    assert list(first) == list(second)
    assert first
    for name in first:
        assert first[name].dtype == second[name].dtype
        assert first[name].numpy().tobytes() == second[name].numpy().tobytes(), name


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture(scope="session")
def fitted():
    rng = np.random.default_rng(1)
    extractor = FTMambaFeatureExtractor(USER_COLUMNS, ITEM_COLUMNS, "user_id", "item_id")
    extractor = fit_extractor(extractor, make_users(rng, 200), make_items(rng, 150))
    return extractor
