"""What the columns of real towers add to a score: laws that hold whatever the mixer."""

import numpy as np
import pytest
import torch

from ftmamba.checkpoint import Checkpoint
from ftmamba.data.fitting import fit_extractor
from ftmamba.recommender import Recommender
from ftmamba.table_embedding import embed_catalogue
from modeling_ftmamba import FTMambaConfig, FTMambaFeatureExtractor, FTMambaTwoTowerModel

ARCHITECTURES = {
    "mamba": {},
    "mamba-both-ways": {"bidirectional": True, "pooling": "mean"},
    "attention": {"mixer": "attention", "numeric_embedding": "periodic"},
    "mlp": {"num_hidden_layers": 0, "pooling": "mean"},
}
USER_COLUMNS = [
    {"name": "age", "kind": "numeric"},
    {"name": "job", "kind": "categorical"},
    {"name": "tags", "kind": "categories"},
    {"name": "joined", "kind": "timestamp"},
    {"name": "taste", "kind": "vector"},
]
ITEM_COLUMNS = [
    {"name": "item_id", "kind": "categorical"},
    {"name": "year", "kind": "numeric"},
    {"name": "genres", "kind": "categories"},
]
RECORD = {"age": 31, "job": "doctor", "tags": ["a", "b"], "joined": 10**9, "taste": [0.5, -1.0]}
N = 12


def make_recommender(user_columns=USER_COLUMNS, item_columns=ITEM_COLUMNS, **architecture):
    """Return a recommender whose parameters are all far from their initial values."""
    rng = np.random.default_rng(0)
    users = {column["name"]: rng.standard_normal(N).tolist() for column in user_columns}
    users |= {
        "age": rng.integers(10, 90, N).tolist(),
        "twin": rng.integers(10, 90, N).tolist(),
        "job": ["doctor", "nurse", None] * 4,
        "tags": [["a", "b", "c"][: row % 4] for row in range(N)],
        "joined": rng.integers(10**9, 2 * 10**9, N).tolist(),
        "taste": rng.standard_normal((N, 2)).tolist(),
    }
    items = {
        "item_id": [f"i{row}" for row in range(N)],
        "year": rng.integers(1950, 2020, N).tolist(),
        "genres": [["war", "drama"][: row % 3] for row in range(N)],
    }
    extractor = FTMambaFeatureExtractor(user_columns, item_columns)
    extractor = fit_extractor(extractor, users, items)
    sizes = {"hidden_size": 16, "head_hidden_size": 12, "projection_size": 8}
    config = FTMambaConfig.from_columns(
        extractor.user_columns, extractor.item_columns, temperature=0.2, **(sizes | architecture)
    )
    torch.manual_seed(0)
    model = FTMambaTwoTowerModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    catalogue = embed_catalogue(model, extractor(items=items), keys=items["item_id"], titles=())
    return Recommender(Checkpoint(model=model, extractor=extractor, catalogue=catalogue))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def recommender(request):
    return make_recommender(**ARCHITECTURES[request.param])


def test_shares_add_up_from_the_score_of_nothing_to_the_score(recommender):
    nothing = recommender.explain({}, "i5")
    found = recommender.explain(RECORD, "i5")
    assert list(found.user) == [column["name"] for column in USER_COLUMNS]
    assert list(found.item) == [column["name"] for column in ITEM_COLUMNS]
    total = sum(found.user.values()) + sum(found.item.values())
    assert abs(found.score - found.baseline_score) > 1e-3
    assert abs(found.baseline_score + total - found.score) < 1e-9
    assert abs(found.score - recommender.score(RECORD, "i5")) < 1e-4
    assert set(nothing.user.values()) == {0.0}
    assert nothing.baseline_score == pytest.approx(found.baseline_score, abs=1e-6)
    model, extractor = recommender._model, recommender._extractor
    with torch.inference_mode():
        both = model(**extractor(users=[{}], items=[{}]))
    assert found.baseline_score == pytest.approx(float(both.scores), abs=1e-5)


def test_a_missing_column_adds_nothing_and_the_others_share_it(recommender):
    record = {name: value for name, value in RECORD.items() if name not in ("job", "taste")}
    found = recommender.explain(record, "i3")
    assert found.user["job"] == found.user["taste"] == 0.0
    assert all(abs(found.user[name]) > 1e-6 for name in ("age", "tags", "joined"))


@pytest.mark.parametrize("name", ["attention", "mlp"])
def test_columns_that_do_the_same_get_equal_shares(name):
    """Where the order of the tokens means nothing, and two columns have one embedding."""
    columns = [USER_COLUMNS[1], *({"name": name, "kind": "numeric"} for name in ("age", "twin"))]
    architecture = {**ARCHITECTURES[name], "pooling": "mean", "numeric_embedding": "linear"}
    recommender = make_recommender(user_columns=columns, **architecture)
    numeric = recommender._model.user_tower.tokenizer.kinds["numeric"]
    with torch.no_grad():
        for parameter in (*numeric.embedding.parameters(), numeric.missing):
            parameter[1] = parameter[0]
    encoder = recommender._extractor._encoders["user"]
    encoder["twin"].table[:] = encoder["age"].table
    found = recommender.explain({"age": 31, "twin": 31, "job": "nurse"}, "i3")
    assert abs(found.user["age"]) > 1e-4
    assert found.user["age"] == pytest.approx(found.user["twin"], abs=1e-6)
    assert abs(found.user["age"] - found.user["job"]) > 1e-4


def test_many_columns_are_sampled_repeatably_and_still_add_up():
    columns = [{"name": f"c{number}", "kind": "numeric"} for number in range(14)]
    recommender = make_recommender(user_columns=columns)
    record = {column["name"]: 0.5 * row for row, column in enumerate(columns)}
    found = recommender.explain(record, "i1")
    total = sum(found.user.values()) + sum(found.item.values())
    assert found.baseline_score + total == pytest.approx(found.score, abs=1e-9)
    assert 0 < found.standard_error < max(map(abs, found.user.values()))
    assert recommender.explain(record, "i1") == found


def test_what_the_model_read_is_said_in_words():
    recommender = make_recommender()
    record = {**RECORD, "job": "astronaut", "tags": [], "taste": None}
    found = recommender.explain(record, "i2")
    assert found.user_values == {
        "age": "31",
        "job": "never seen in training",
        "tags": "none",
        "joined": "2001-09-09",
        "taste": "missing",
    }
    assert found.item_values["item_id"] == "i2"
    assert found.item_values["genres"] == "war, drama"
    assert recommender.explain(RECORD, "i2").user_values["taste"] == "a vector of 2"


def test_two_calls_of_the_towers_are_enough(monkeypatch):
    """2 ** n coalitions of one tower and 2 ** m of the other, not 2 ** (n + m) of both."""
    recommender, n_rows = make_recommender(), []
    for name in ("get_user_embeddings", "get_item_embeddings"):
        embed = getattr(recommender._model, name)

        def counted(embed=embed, **inputs):
            n_rows.append(len(next(iter(inputs.values()))))
            return embed(**inputs)

        monkeypatch.setattr(recommender._model, name, counted)
    recommender.explain(RECORD, "i3")
    assert n_rows == [2 ** len(USER_COLUMNS), 2 ** len(ITEM_COLUMNS)]
