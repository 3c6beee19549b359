"""Raw tables that every test may spoil in its own way, and MovieLens-100K where it can be had."""

import os

import pyarrow as pa
import pytest

from ftmamba.data.named_datasets import movielens_100k


@pytest.fixture
def raw():
    """Users, items and interactions, as `load_tables` names them."""
    users = {"user_id": ["u1", "u2", "u3"], "age": [30, None, 50], "city": ["a", "b", "a"]}
    items = {
        "item_id": ["001", "002", "010", "011"],
        "title": ["One", "Two", "Ten", None],
        "genres": ["x|y", "y", None, "x"],
        "price": [1.5, 2.5, 3.5, 4.5],
    }
    events = {
        "user_id": ["u1", "u3", "u1", "u2"],
        "item_id": ["010", "001", "002", "011"],
        "time": [100, 50, 200, 300],
        "rating": [5.0, 3.0, 1.0, 4.0],
    }
    tables = {"users": users, "items": items, "interactions": events}
    return {name: pa.table(columns) for name, columns in tables.items()}


@pytest.fixture
def schema():
    return {
        "users": {"key": "user_id", "columns": {"age": "numeric", "city": "categorical"}},
        "items": {
            "key": "item_id",
            "title": "title",
            "columns": {"genres": {"kind": "categories", "separator": "|"}, "price": "numeric"},
        },
        "interactions": {"user": "user_id", "item": "item_id", "time": "time", "weight": "rating"},
    }


@pytest.fixture(scope="session")
def ml100k():
    try:
        return movielens_100k(os.environ.get("FTMAMBA_ML100K"))
    except FileNotFoundError as error:
        pytest.skip(f"MovieLens-100K is neither here nor can it be fetched: {error}")
