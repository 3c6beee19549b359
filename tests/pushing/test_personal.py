"""Columns whose values look like somebody's own are named before they are published."""

import uuid

import pyarrow as pa
import pytest

from ftmamba.__main__ import main as command_line
from ftmamba.checkpoint import save_network
from ftmamba.data.fitting import fit_extractor
from hub_cards.contents import looks_like, personal_warning
from modeling_ftmamba.configuration_ftmamba import FTMambaConfig
from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel
from modeling_ftmamba.processing_ftmamba import FTMambaFeatureExtractor

N = 200


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([f"user{n}@mail.example" for n in range(N)], "e-mail addresses"),
        (["none"] * 90 + [f"u{n}@mail.example" for n in range(10)], "e-mail addresses"),
        ([f"+49 30 {123456 + n}" for n in range(N)], "telephone numbers"),
        ([f"(555) 010-{n:04}" for n in range(N)], "telephone numbers"),
        ([f"192.168.0.{n}" for n in range(N)], "network addresses"),
        ([str(uuid.UUID(int=n)) for n in range(N)], "free ids"),
        ([f"{n:024x}" for n in range(N)], "free ids"),
        ([str(10_000_000 + n) for n in range(N)], "free ids"),
        (["doctor", "artist", "nurse"], ""),
        ([f"{n:05}" for n in range(N)], ""),
        ([str(year) for year in range(1900, 2020)], ""),
        ([f"{day:02}/{month:02}/1999" for day in range(1, 28) for month in range(1, 13)], ""),
        ([f"word {n}" for n in range(N)], ""),
        (["1000001", "1000002"], ""),
        ([], ""),
    ],
)
def test_values_are_judged_by_what_they_look_like(values, why):
    assert looks_like("column", values, "user") == why


@pytest.mark.parametrize(
    "name", ["email", "e_mail", "user_phone", "ip", "first_name", "Birth_Date"]
)
def test_a_name_can_be_enough(name):
    assert looks_like(name, ["a", "b"], "user") == "by its name, personal data"


@pytest.mark.parametrize("name", ["zip", "shipping", "recipe", "title", "telephoto", "nickel"])
def test_other_names_are_not(name):
    assert looks_like(name, ["a", "b"], "user") == ""


def test_ids_of_items_are_their_own():
    assert looks_like("item_id", [str(10_000_000 + n) for n in range(N)], "item") == ""


@pytest.fixture
def personal(folder):
    columns = {
        "user_id": [f"u{n}" for n in range(N)],
        "contact": [f"user{n}@mail.example" for n in range(N)],
        "occupation": ["doctor", "artist"] * (N // 2),
        "age": list(range(N)),
    }
    extractor = FTMambaFeatureExtractor(
        user_columns=[
            {"name": "user_id", "kind": "categorical"},
            {"name": "contact", "kind": "categorical"},
            {"name": "occupation", "kind": "categorical"},
            {"name": "age", "kind": "numeric"},
        ],
        item_columns=[{"name": "item_id", "kind": "categorical"}],
        user_key="user_id",
        item_key="item_id",
    )
    extractor = fit_extractor(extractor, pa.table(columns), {"item_id": ["i1", "i2"]})
    config = FTMambaConfig.from_columns(extractor.user_columns, extractor.item_columns)
    save_network(folder, FTMambaTwoTowerModel(config), extractor, max_shard_size="5GB")
    return folder


def test_the_columns_of_a_checkpoint_are_named_and_no_value_is(personal, own_hub, capsys):
    assert (
        command_line(["push", str(personal), "me/films", "--dry_run", "--without_catalogue"]) == 0
    )
    printed = capsys.readouterr()
    assert "model.safetensors" in printed.out
    assert f"'user_id' of the users ({N} values: the key of the users)" in printed.err
    assert "'contact' of the users (200 values: e-mail addresses)" in printed.err
    assert "occupation" not in printed.err
    assert "Leave such a column out of the schema" in printed.err
    assert "@mail" not in printed.out + printed.err
    assert not own_hub.requests


def test_a_harmless_checkpoint_gets_no_warning(folder):
    assert personal_warning(folder) == ""
