"""Made-up tables with a known answer, seeded: for tests and first tries.

Shapes: R interactions.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv

from ftmamba.data.interactions import Interactions
from ftmamba.data.schema import Schema
from ftmamba.data.tables import Tables

FIRST_SECOND = 1_700_000_000
_MINUTE = 60


def checkerboard(
    n_pairs: int = 40, n_colours: int = 2, *, seed: int = 0, popularity_days: tuple[int, ...] = ()
) -> Tables:
    """Return a checkerboard with its diagonal withheld.

    User u likes every item of its own colour, u modulo `n_colours`, but item u, which is left
    out: a model that has understood ranks item u first among the items the user has not seen.
    Colours are not in the tables; each row has its key as a category and a few columns of noise.

    Args:
        n_pairs: users, and as many items.
        n_colours: groups of users and items.
        seed: of the order of events and of the noise.
        popularity_days: windows of popularity columns.
    """
    generator = np.random.default_rng(seed)
    users_R, items_R = np.nonzero(_same_colour(n_pairs, n_colours))
    order_R = generator.permutation(len(users_R))
    interactions = _events(users_R[order_R], items_R[order_R], n_pairs, n_pairs)
    schema = Schema.from_dict(
        {
            "users": {"key": "user_id", "columns": {"user_id": "categorical", "age": "numeric"}},
            "items": {
                "key": "item_id",
                "title": "title",
                "columns": {"item_id": "categorical", "price": "numeric"},
                "popularity_days": list(popularity_days),
            },
            "interactions": {"user": "user_id", "item": "item_id", "time": "time"},
        }
    )
    users = pa.table({"user_id": _names("u", n_pairs), "age": generator.normal(40, 10, n_pairs)})
    items = pa.table(
        {
            "item_id": _names("i", n_pairs),
            "title": _names("Item ", n_pairs),
            "price": generator.lognormal(1, 1, n_pairs),
        }
    )
    return Tables(users, items, interactions, schema)


def clusters(
    n_users: int = 200,
    n_items: int = 100,
    n_clusters: int = 4,
    *,
    n_events: int = 4000,
    noise: float = 0.1,
    seed: int = 0,
    popularity_days: tuple[int, ...] = (),
) -> Tables:
    """Return tables in which the columns say what a user likes.

    A user's `taste` names a cluster and its items carry it among their `tags`; an event takes an
    item of the user's cluster, or with probability `noise` any item. Some ages are missing. A
    user who was never seen can be served by its columns alone.

    Args:
        n_users: rows of the table of users.
        n_items: rows of the table of items.
        n_clusters: tastes.
        n_events: interactions, in the order of their times.
        noise: share of events that follow no taste.
        seed: of everything drawn.
        popularity_days: windows of popularity columns.
    """
    generator = np.random.default_rng(seed)
    tastes = generator.integers(n_clusters, size=n_users)
    users_R = generator.integers(n_users, size=n_events)
    any_item_R = generator.integers(n_items, size=n_events)
    of_taste_R = any_item_R - any_item_R % n_clusters + tastes[users_R]
    of_taste_R = np.where(of_taste_R < n_items, of_taste_R, tastes[users_R])
    items_R = np.where(generator.random(n_events) < noise, any_item_R, of_taste_R)
    ages = generator.integers(16, 90, size=n_users)
    schema = Schema.from_dict(
        {
            "users": {"key": "user_id", "columns": {"age": "numeric", "taste": "categorical"}},
            "items": {
                "key": "item_id",
                "title": "title",
                "columns": {
                    "price": "numeric",
                    "tags": {"kind": "categories", "separator": "|"},
                    "released": "timestamp",
                },
                "popularity_days": list(popularity_days),
            },
            "interactions": {"user": "user_id", "item": "item_id", "time": "time"},
        }
    )
    users = pa.table(
        {
            "user_id": _names("u", n_users),
            "age": pa.array(ages, mask=generator.random(n_users) < 0.1),
            "taste": [f"taste {taste}" for taste in tastes],
        }
    )
    items = pa.table(
        {
            "item_id": _names("i", n_items),
            "title": _names("Item ", n_items),
            "price": generator.lognormal(1, 1, n_items),
            "tags": [f"cluster {item % n_clusters}|decade {item % 3}" for item in range(n_items)],
            "released": FIRST_SECOND - generator.integers(10**8, size=n_items),
        }
    )
    return Tables(users, items, _events(users_R, items_R, n_users, n_items), schema)


def write_csv(tables: Tables, folder: Path) -> dict[str, str]:
    """Write the three tables as CSV; return their paths as a recipe's `data` has them."""
    pairs = tables.interactions
    interactions = {
        "user_id": np.array(tables.user_keys)[pairs.user_ids],
        "item_id": np.array(tables.item_keys)[pairs.item_ids],
        "time": pairs.times,
    }
    raw = {"users": tables.users, "items": tables.items, "interactions": pa.table(interactions)}
    for name, table in raw.items():
        csv.write_csv(table, folder / f"{name}.csv")
    return {name: str(folder / f"{name}.csv") for name in raw}


def _same_colour(n_pairs: int, n_colours: int) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    colours = np.arange(n_pairs) % n_colours
    liked: np.ndarray[tuple[int, int], np.dtype[np.bool_]] = colours[:, None] == colours[None, :]
    np.fill_diagonal(liked, val=False)
    return liked


def _events(
    users_R: np.ndarray[tuple[int], np.dtype[np.int64]],
    items_R: np.ndarray[tuple[int], np.dtype[np.int64]],
    n_users: int,
    n_items: int,
) -> Interactions:
    """Return one event a minute, in the order given."""
    times_R = FIRST_SECOND + _MINUTE * np.arange(len(users_R), dtype=np.int64)
    return Interactions(
        users_R.astype(np.int64), items_R.astype(np.int64), times_R, None, n_users, n_items
    )


def _names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{row}" for row in range(count)]
