import dataclasses
import json

import numpy as np
import pytest
import torch

from ftmamba import Recommender
from ftmamba.__main__ import main
from ftmamba.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ftmamba.commands.evaluate import repeat_evaluation
from ftmamba.data.fitting import fit_extractor
from ftmamba.data.popularity import PopularityHistory
from ftmamba.data.schema import Schema
from ftmamba.data.tables import load_tables
from ftmamba.evaluation.splits import GlobalTime
from ftmamba.identity import identity_of
from ftmamba.known_users import known_users
from ftmamba.recipe import recipe_from_dict
from ftmamba.table_embedding import embed_catalogue
from modeling_ftmamba.configuration_ftmamba import FTMambaConfig
from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel
from modeling_ftmamba.processing_ftmamba import FTMambaFeatureExtractor

SCHEMA = {
    "users": {"key": "user", "columns": {"age": "numeric", "city": "categorical"}},
    "items": {"key": "item", "popularity_days": [1, 100], "columns": {"item": "categorical"}},
    "interactions": {"user": "user", "item": "item", "time": "time"},
}


@pytest.fixture
def recipe(tmp_path):
    """The recipe of ten days of 300 interactions; a popular item turns up on the last day."""
    rng = np.random.default_rng(1)
    users = "".join(f"u{row},{20 + row},{'ab'[row % 2]}\n" for row in range(30))
    items = "".join(f"i{row}\n" for row in range(25))
    times = np.sort(rng.integers(0, 10 * 86_400, 300)) + 893_000_000
    rows = zip(rng.integers(30, size=300), rng.integers(24, size=300), times, strict=True)
    pairs = "".join(f"u{u},i{24 if row > 275 else i},{t}\n" for row, (u, i, t) in enumerate(rows))
    texts = {
        "users": "user,age,city\n" + users,
        "items": "item\n" + items,
        "interactions": "user,item,time\n" + pairs,
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.csv").write_text(text)
    paths = {name: str(tmp_path / f"{name}.csv") for name in texts}
    return {
        "data": paths,
        "schema": SCHEMA,
        "split": {"kind": "global-time"},
        "evaluation": {"k": [3, 5]},
    }


@pytest.fixture
def folder(recipe, tmp_path):
    """A checkpoint whose catalogue is as of the beginning of the test, as training leaves it."""
    tables = load_tables(**recipe["data"], schema=Schema.from_dict(SCHEMA))
    split = GlobalTime().split(tables.interactions)
    counts = PopularityHistory(split.before_test).catalogue(split.test_time, [1, 100])
    names = [column.name for column in tables.schema.items.popularity_columns]
    items = {"item": tables.item_keys, **dict(zip(names, counts.T, strict=True))}
    extractor = FTMambaFeatureExtractor(
        user_columns=[column.to_dict() for column in tables.schema.users.columns],
        item_columns=[column.to_dict() for column in tables.schema.items.columns],
        user_key="user",
        item_key="item",
    )
    extractor = fit_extractor(extractor, tables.users, items)
    sizes = {"hidden_size": 16, "state_size": 4, "head_hidden_size": 16, "projection_size": 8}
    torch.manual_seed(0)
    model = FTMambaTwoTowerModel(
        FTMambaConfig.from_columns(extractor.user_columns, extractor.item_columns, **sizes)
    )
    catalogue = embed_catalogue(
        model, extractor(items=items), keys=tables.item_keys, titles=(), as_of=split.test_time
    )
    users = known_users(tables.users, split.before_test, key="user", columns=["age", "city"])
    results = {"identity": identity_of(recipe_from_dict(recipe), tables)}
    checkpoint = Checkpoint(model, extractor, catalogue, users, "card", results, recipe)
    save_checkpoint(tmp_path / "run", checkpoint)
    return tmp_path / "run"


def test_it_ranks_as_the_recommender_does(recipe, folder):
    """Lists and hit rate from `recommend_batch`, which shares no step with the evaluation."""
    split, evaluation = repeat_evaluation(load_checkpoint(folder))
    recommender = Recommender.from_pretrained(folder)
    assert recommender.users is not None
    user_keys = [recommender.users.keys[user_id] for user_id in evaluation.user_ids]
    answers = recommender.recommend_batch(user_keys=user_keys, k=5)
    ids = [[recommender.catalogue.row(one.item_key) for one in found] for found in answers]
    assert evaluation.recommended.tolist() == ids
    hits = [
        bool(set(found) & set(split.test.item_ids[split.test.user_ids == user_id].tolist()))
        for user_id, found in zip(evaluation.user_ids, ids, strict=True)
    ]
    assert 0 < np.mean(hits) < 1
    assert evaluation.mean("HR@5") == pytest.approx(np.mean(hits))


def test_a_catalogue_of_a_later_time_does_not_leak_into_it(folder):
    checkpoint = load_checkpoint(folder)
    expected = repeat_evaluation(checkpoint)[1].recommended
    later = np.flip(checkpoint.catalogue.embeddings).copy()
    catalogue = dataclasses.replace(checkpoint.catalogue, embeddings=later, as_of=10**10)
    found = repeat_evaluation(dataclasses.replace(checkpoint, catalogue=catalogue))[1].recommended
    np.testing.assert_array_equal(found, expected)


def test_it_prints_split_protocol_and_table_or_json(folder, capsys):
    assert main(["evaluate", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "full ranking of 25 items, seen items masked" in text
    assert "| this checkpoint" in text
    assert "NDCG@5" in text
    assert main(["evaluate", str(folder), "--json"]) == 0
    _, evaluation = repeat_evaluation(load_checkpoint(folder))
    assert json.loads(capsys.readouterr().out) == evaluation.to_dict()


def append(folder, table, text):
    with (folder.parent / f"{table}.csv").open("a") as file:
        file.write(text)


def test_figures_on_other_tables_are_refused_and_the_message_says_what_differs(folder, capsys):
    def problem(*flags):
        assert main(["evaluate", str(folder), *flags]) == 2
        return capsys.readouterr().err

    assert main(["evaluate", str(folder)]) == 0
    append(folder, "items", "i99\n")
    append(folder, "interactions", "u1,i99,893900000\nu2,i3,893900000\n")
    message = problem()
    assert "table 'items' had 25 rows and has 26" in message
    assert "table 'interactions' had 300 rows and has 302" in message
    assert "--allow_changed data" in message
    assert message.count("\n") == 1
    path = folder.parent / "interactions.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *lines[:0:-1]]))
    for flags in ((), ("--allow_changed", "data")):
        message = problem(*flags)
        assert "table 'interactions' has other values of user, item, time" in message
        assert "--allow_changed" not in message
    recipe = folder / "recipe.yaml"
    path.write_text("\n".join(lines[:301]) + "\n")
    recipe.write_text(recipe.read_text().replace("kind: global-time", "kind: leave-last-out"))
    assert "split.kind was 'global-time' and is 'leave-last-out'" in problem("--allow_changed=data")


def test_added_rows_can_be_evaluated_unless_the_test_was_in_training(folder, capsys, caplog):
    append(
        folder, "interactions", "".join(f"u{row % 30},i3,{893900000 + row}\n" for row in range(60))
    )
    flags = ["evaluate", str(folder), "--allow_changed", "data"]
    assert main(flags) == 0
    assert "table 'interactions' had 300 rows and has 360" in caplog.text
    recipe, results = folder / "recipe.yaml", folder / "all_results.json"
    recipe.write_text(recipe.read_text().replace("kind: global-time", "kind: random"))
    stored = json.loads(results.read_text())
    stored["identity"]["split"] = {"kind": "random", "seed": 42}
    results.write_text(json.dumps(stored))
    capsys.readouterr()
    assert main(flags) == 2
    assert "test interactions were in training before rows were added" in capsys.readouterr().err


def test_a_checkpoint_that_does_not_say_its_data_is_evaluated_with_a_warning(folder, caplog):
    (folder / "all_results.json").unlink()
    assert main(["evaluate", str(folder)]) == 0
    assert "does not say on which data it was trained" in caplog.text


def test_a_missing_table_or_recipe_is_one_line(folder, capsys):
    for missing in (folder.parent / "items.csv", folder / "recipe.yaml"):
        missing.unlink()
        assert main(["evaluate", str(folder)]) == 2
        error = capsys.readouterr().err
        assert missing.name in error
        assert error.count("\n") == 1
