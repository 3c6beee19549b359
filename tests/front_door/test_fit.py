"""From tables in memory to a recommender in one call, and out again to a folder."""

import tempfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict

from ftmamba import Recommender, train
from ftmamba.checkpoint import load_checkpoint
from ftmamba.commands.evaluate import repeat_evaluation
from ftmamba.data.tables import load_tables

SMALL = {
    "num_epochs": 1, "baselines": ["popularity"],
    "overrides": {"hidden_size": 16, "num_hidden_layers": 1, "projection_size": 16},
}  # fmt: skip


@pytest.fixture(scope="module")
def fitted(raw):
    frames = {name: table.to_pandas() for name, table in raw.items()}
    return Recommender.fit(**frames, **SMALL)


def data_set(table):
    return Dataset(table, fingerprint="of its own, so that nothing is hashed")


def test_tables_in_memory_become_a_recommender_that_knows_how_good_it_is(fitted):
    found = fitted.recommend(user_key="u3", k=4)
    assert [one.title for one in found] == [f"Item {one.item_key[1:]}" for one in found]
    assert {"FT-Mamba", "popularity"} <= set(fitted.evaluation.models)
    assert "| popularity" in str(fitted.evaluation)


def test_a_table_of_records_is_asked_as_its_rows_are(fitted):
    records = [{"age": 31.0}, {"age": None}]
    expected = fitted.recommend_batch(records=records, k=3)
    for same in (
        pd.DataFrame(records), pa.Table.from_pylist(records),
        (one for one in records), map(dict, records), np.array(records), pd.Series(records),
        {"age": [31.0, None]}, data_set(pa.Table.from_pylist(records)),
        DatasetDict({"train": data_set(pa.Table.from_pylist(records))}),
    ):  # fmt: skip
        assert fitted.recommend_batch(records=same, k=3) == expected, type(same)


def test_keys_of_users_come_in_any_container(fitted):
    expected = fitted.recommend_batch(user_keys=["u1", "u2"], k=3)
    for same in (np.array, pd.Series, pa.array, iter):
        assert fitted.recommend_batch(user_keys=same(["u1", "u2"]), k=3) == expected, same


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"records": {"age": 31}},
            "'age' of a table must hold a value for each row, got 31",
        ),
        ({"records": [1, 2]}, "must be a dict of column name to value, got 1"),
        ({"records": np.array([1, 2])}, "must be a dict of column name to value"),
        ({"records": DatasetDict()}, "a table must be one split, got 0"),
        (
            {"records": DatasetDict({"train": data_set(pa.table({"age": [1]}))} | {"test": None})},
            r"a table must be one split, got 2; give data\['train'\] or data\['test'\]",
        ),
        ({"user_keys": "u1"}, r"user_keys must be a list, got 'u1'; write \[user_key\]"),
    ],
)
def test_what_is_no_list_of_users_is_refused_in_words(fitted, given, message):
    with pytest.raises(ValueError, match=message):
        fitted.recommend_batch(**given, k=3)


def test_interactions_may_come_from_a_generator_or_a_data_set_of_one_split(raw):
    rows = raw["interactions"].to_pylist()
    table = load_tables(None, None, rows)
    for same in (iter(rows), DatasetDict({"train": data_set(raw["interactions"])})):
        found = load_tables(None, None, same)
        assert found.interactions.item_ids.tolist() == table.interactions.item_ids.tolist()
    with pytest.raises(ValueError, match=r"row 0 of a table \(the first is 0\) must be a mapping"):
        load_tables(None, None, iter([1, 2]))


def test_what_is_fitted_is_saved_and_loaded_and_saved_again(fitted, tmp_path):
    expected = [one.item_key for one in fitted.recommend(user_key="u3", k=4)]
    fitted.save_pretrained(tmp_path / "once")
    Recommender.from_pretrained(tmp_path / "once").save_pretrained(tmp_path / "twice")
    again = Recommender.from_pretrained(tmp_path / "twice")
    assert [one.item_key for one in again.recommend(user_key="u3", k=4)] == expected
    assert str(again.evaluation) == str(fitted.evaluation)
    assert (tmp_path / "twice" / "README.md").read_text().startswith("---\n")
    text = (tmp_path / "twice" / "recipe.yaml").read_text()
    assert text.startswith("# The tables of this run were in memory, so it cannot be run again")
    with pytest.raises(ValueError, match="run on tables in memory names no files"):
        train(tmp_path / "twice" / "recipe.yaml")
    with pytest.raises(ValueError, match="the run's tables were in memory"):
        repeat_evaluation(load_checkpoint(tmp_path / "twice"))


def test_test_items_that_the_mask_hides_are_counted_in_log_result_and_card(tmp_path, caplog):
    rows = [
        {"user": f"u{user}", "item": f"i{(user + step % 4) % 9}", "time": 1000 * step}
        for user in range(12)
        for step in range(5 + (user > 3))
    ]
    with caplog.at_level("WARNING", "ftmamba"):
        fitted = Recommender.fit(
            rows, split="leave-last-out", k=[3], selection_metric="NDCG@3", **SMALL
        )
    fitted.save_pretrained(tmp_path / "run")
    words = "masked are 12 of 12 test items, which no model can recommend"
    assert any(words in text and "mask_seen: false" in text for text in caplog.messages)
    assert any("masked are 8 of 12 validation items" in text for text in caplog.messages)
    own = next(iter(fitted.evaluation.models.values()))
    assert own["unreachable"] == {"items": 12, "of_items": 12, "users": 12}
    assert words in str(fitted.evaluation)
    assert words in (tmp_path / "run" / "README.md").read_text()


def test_a_catalogue_of_a_few_items_is_fitted_with_shorter_lists():
    rows = [
        {"user": f"u{user}", "item": f"i{(user * 3 + step) % 7}", "time": 1000 * step + user}
        for user in range(40)
        for step in range(5)
    ]
    fitted = Recommender.fit(rows, **SMALL)
    assert {"NDCG@5", "NDCG@7"} <= set(fitted.evaluation.models["popularity"]["metrics"])
    assert len(fitted.recommend(user_key="u3", k=7)) == 2


def test_what_is_fitted_is_pushed_without_its_users_and_loads_from_there(fitted, here):
    pushed = fitted.push_to_hub("tester/films", private=True)
    files = here.files("tester/films")
    assert {"model.safetensors", "catalogue.safetensors", "README.md"} <= files.keys()
    assert not any(name.startswith("local/") for name in files)
    loaded = Recommender.from_pretrained("tester/films", revision=pushed.commit)
    record = {"age": 31.0}
    found = [one.item_key for one in loaded.recommend(record=record, k=3)]
    assert found == [one.item_key for one in fitted.recommend(record=record, k=3)]


def test_nothing_is_written_unless_a_folder_is_named(raw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    Recommender.fit(**raw, **SMALL)
    assert list(tmp_path.iterdir()) == []
    Recommender.fit(**raw, **SMALL, output_dir="mine")
    assert (tmp_path / "mine" / "model.safetensors").is_file()


def test_a_comparison_that_fails_does_not_lose_the_model(raw, tmp_path, monkeypatch, caplog):
    def failing(*_, **__):
        raise MemoryError("too large")

    monkeypatch.setattr("ftmamba.run.compare", failing)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(MemoryError):
        Recommender.fit(**raw, **SMALL)
    (folder,) = tmp_path.glob("ftmamba-*")
    assert f"the trained model is in {folder}" in caplog.text
    assert Recommender.from_pretrained(folder).recommend(user_key="u3", k=4)


def test_an_unknown_option_is_refused_with_the_near_one(raw):
    with pytest.raises(ValueError, match="no option 'num_epoch'; did you mean 'num_epochs'"):
        Recommender.fit(**raw, num_epoch=3)
