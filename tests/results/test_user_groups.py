"""Groups of test users, found on paper."""

import numpy as np
import pyarrow as pa
import pytest

from ftmamba.comparison import check_group_columns, group_figures, groups_of_users
from ftmamba.data.interactions import Interactions
from ftmamba.data.schema import Schema
from ftmamba.data.tables import Tables
from ftmamba.evaluation import Evaluation, Protocol

N = 24
JOBS = ["doctor"] * 8 + ["artist"] * 7 + [""] * 5 + ["spy", "judge", "cook", "cook"]


@pytest.fixture(scope="module")
def tables():
    users = pa.table(
        {
            "user_id": [str(n) for n in range(N)],
            "job": JOBS,
            "age": pa.array([*range(20), *[None] * 4], pa.int64()),
            "likes": [["tea"], ["tea", "war"], None, []] * 6,
            "tags": ["a, b", "b", "", "b"] * 6,
            "joined": [0] * N,
        }
    )
    schema = Schema.from_dict(
        {
            "users": {
                "key": "user_id",
                "columns": {
                    "job": "categorical",
                    "age": "numeric",
                    "likes": "categories",
                    "tags": {"kind": "categories", "separator": ","},
                    "joined": "timestamp",
                },
            },
            "items": {"key": "i", "columns": {"i": "categorical"}},
            "interactions": {"user": "u", "item": "i"},
        }
    )
    none = np.empty(0, np.int64)
    events = Interactions(none, none, None, None, n_users=N, n_items=1)
    return Tables(users, pa.table({"i": ["x"]}), events, schema)


def groups(tables, name, rows=None):
    rows = np.arange(N) if rows is None else np.asarray(rows)
    return {group: rows[mask].tolist() for group, mask in groups_of_users(tables, name, rows)}


def test_categories_are_groups_and_the_small_ones_are_put_together(tables):
    found = groups(tables, "job")
    assert list(found) == ["doctor", "artist", "(missing)"]
    assert found["artist"] == list(range(8, 15))
    # Four users are left, too few for a group of their own.
    assert sum(map(len, found.values())) == 20


def test_leftovers_are_a_group_where_they_are_enough(tables):
    # Only test users count.
    found = groups(tables, "job", range(0, 16))
    assert found == {"doctor": list(range(8)), "artist": list(range(8, 15))}
    found = groups(tables, "job", [*range(8), *range(8, 11), *range(20, 24)])
    assert list(found) == ["doctor", "all others"]
    assert found["all others"] == [8, 9, 10, 20, 21, 22, 23]


def test_numbers_are_cut_into_quarters_whose_ends_are_open(tables):
    found = groups(tables, "age")
    # Four users are of 16 and over, and four of no known age.
    assert list(found) == ["up to 5", "6 to 10", "11 to 15", "all others"]
    assert found["up to 5"] == [0, 1, 2, 3, 4, 5]
    found = groups(tables, "age", [*range(20), *range(20)])
    assert list(found) == ["up to 5", "6 to 10", "11 to 15", "16 and over"]


def test_equal_numbers_are_never_parted(tables):
    assert list(groups(tables, "age", [3] * 9)) == ["any number"]
    found = groups(tables, "age", [3] * 9 + [4] * 5)
    assert found == {"up to 3": [3] * 9, "4 and over": [4] * 5}
    assert list(groups(tables, "age", [20, 21, 22, 23, 20])) == ["(missing)"]


def test_a_user_is_in_the_group_of_each_member_of_a_set(tables):
    found = groups(tables, "likes")
    assert {name: len(rows) for name, rows in found.items()} == {
        "(missing)": 12, "tea": 12, "war": 6
    }  # fmt: skip
    assert set(found["war"]) < set(found["tea"])
    assert len(groups(tables, "tags")["a"]) == 6


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("jobs", "the users have no column 'jobs'; did you mean 'job'"),
        ("joined", "column 'joined' is of kind 'timestamp', which makes no groups"),
        ("user_id", "the users have no column 'user_id'"),
    ],
)
def test_a_column_that_makes_no_groups_is_refused_before_training(tables, name, message):
    with pytest.raises(ValueError, match=message):
        check_group_columns([name], tables)


def test_figures_are_the_means_of_the_groups(tables):
    def evaluation(values):
        return Evaluation(
            np.arange(N),
            {"NDCG@5": np.asarray(values, float)},
            np.zeros((N, 5), np.int64),
            np.ones(N, bool),
            np.zeros(N, np.int64),
            9,
            Protocol(k=(5,)),
        )

    rng = np.random.default_rng(0)
    values = np.where(np.arange(N) < 8, 0.9, 0.1) + rng.normal(0, 0.01, N)
    both = {"own": evaluation(values), "other": evaluation(np.full(N, 0.5))}
    found = group_figures(both, tables, columns=["job"], metric="NDCG@5")
    doctors, artists, _ = found["job"]
    assert (doctors["group"], doctors["n_users"]) == ("doctor", 8)
    own = doctors["models"]["own"]
    assert own["value"] == pytest.approx(values[:8].mean())
    assert own["interval"][0] < own["value"] < own["interval"][1]
    assert artists["models"]["other"] == {"value": 0.5, "interval": [0.5, 0.5]}
