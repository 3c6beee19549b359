"""Counted neighbours and popularity are blended into the score, and every way to a score knows."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors import safe_open

from ftmamba import Recommender
from ftmamba.checkpoint import load_checkpoint, save_checkpoint
from ftmamba.commands.evaluate import repeat_evaluation
from ftmamba.commands.recommend import explanation_table
from ftmamba.comparison import compare, held_out_scorer
from ftmamba.data.histories import histories_of
from ftmamba.evaluation.baselines import ItemKNN
from ftmamba.evaluation.blending import (
    BlendedScorer,
    Blending,
    counted,
    first_as_good,
    log_popularity,
)
from ftmamba.recipe import recipe_from_dict
from ftmamba.results import make_checkpoint
from ftmamba.streaming import CheckpointObserver, Rules, UserEvent, consume
from ftmamba.streaming.stores import SQLiteStore
from hub_cards import with_card
from hub_cards.space_page import draw_shares
from modeling_ftmamba.catalogue import Blend, Catalogue, load_catalogue
from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel
from modeling_ftmamba.pipeline_ftmamba import FTMambaRecommendationPipeline
from modeling_ftmamba.processing_ftmamba import Event, FTMambaFeatureExtractor
from tests.evaluation.test_baselines import DAY, interactions_of, random_pairs
from tests.streaming.test_consumer import ListSource

from .conftest import N_ITEMS, N_USERS, ring_recipe, ring_tables, trained_on


@pytest.fixture(scope="module")
def blended(tmp_path_factory):
    """A run of few epochs on the ring, where counting knows what comes next, and its folder."""
    folder = tmp_path_factory.mktemp("blend")
    values = {**ring_recipe(folder, num_epochs=2, evaluate_every=2).to_dict(), "blend": "auto"}
    values["evaluation"] |= {"baselines": ["popularity", "pctm"], "tune_baselines": True}
    recipe, tables = recipe_from_dict(values), ring_tables()
    split, trained = trained_on(recipe, tables)
    comparison = compare(recipe, tables, split, trained, Accelerator(cpu=True))
    save_checkpoint(folder / "run", make_checkpoint(recipe, tables, split, trained, comparison))
    return split, trained, comparison, folder / "run"


def slow_scores(towers_UI, blend, histories):
    """The definition of the blended score, in float64, one event after the other."""
    result = np.asarray(towers_UI).astype(np.float64)
    for user, history in enumerate(histories):
        newest = list(reversed(history))[: blend.max_history]
        prior = blend.popularity_weight if newest else blend.cold_weight
        result[user] += prior * blend.log_popularity.astype(np.float64)
        n_recent = min(len(newest), blend.n_recent)
        total = sum(blend.ratio**age for age in range(n_recent))
        for age, item in enumerate(newest):
            if age < blend.n_recent:
                h = blend.recent_share * blend.ratio**age / total
            else:
                n_others = len(newest) - blend.n_recent
                h = (1 - blend.recent_share) / n_others if blend.n_recent else n_others**-0.5
            for index in range(blend.starts[item], blend.starts[item + 1]):
                evidence = float(blend.evidence[index])
                result[user, blend.neighbours[index]] += blend.weight * h * evidence
    return result


def drawn_blend(n_items=30, **values):
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 6, n_items)
    return Blend(
        np.concatenate([[0], np.cumsum(counts)]),
        np.concatenate([rng.permutation(n_items)[:n] for n in counts]).astype(np.int32),
        rng.random(counts.sum()).astype(np.float32),
        rng.random(n_items).astype(np.float32),
        **values,
    )


SHAPES = {
    "recent events and older ones": {"ratio": 0.6, "n_recent": 3, "recent_share": 0.8},
    "recent events alone": {"ratio": 0.5, "n_recent": 50, "recent_share": 1.0},
    "every event alike": {},
    "few events": {"ratio": 0.6, "n_recent": 3, "recent_share": 0.8, "max_history": 4},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_what_is_added_is_its_definition(shape):
    blend = drawn_blend(weight=1.5, popularity_weight=-0.3, cold_weight=2.0, **shape)
    rng = np.random.default_rng(1)
    histories = [rng.integers(30, size=n).tolist() for n in (0, 1, 3, 4, 9, 0, 20)]
    expected = slow_scores(np.zeros((7, 30)), blend, histories)
    np.testing.assert_allclose(blend.added(histories), expected, rtol=1e-6, atol=1e-6)


def test_an_item_of_no_catalogue_has_an_age_and_no_neighbours():
    blend = drawn_blend(weight=1.0, ratio=0.5, n_recent=2, recent_share=1.0)
    item = int(np.flatnonzero(np.diff(blend.starts))[0])
    expected = blend.added([[item, 0]]) - blend.added([[0]]) * 2 / 3
    np.testing.assert_allclose(blend.added([[item, -1]]), expected, atol=1e-6)


def test_only_the_most_similar_neighbours_are_kept_the_lowest_ids_among_equals(monkeypatch):
    monkeypatch.setattr("ftmamba.evaluation.blending.N_NEIGHBOURS", 3)
    train, _ = random_pairs(30, 12, 200)
    model = ItemKNN(n_neighbours=12, shrink=1)
    whole = model.neighbours(train).toarray()
    blend = counted(model, train, log_popularity(train, None, None))
    for item in range(12):
        best = sorted(range(12), key=lambda other: (-whole[item, other], other))[:3]
        found = blend.neighbours[blend.starts[item] : blend.starts[item + 1]]
        assert sorted(found.tolist()) == sorted(one for one in best if whole[item, one] > 0)


def test_counting_helps_a_young_model_and_is_first_in_the_table(blended):
    comparison = blended[2]
    names = list(comparison.evaluations)
    assert names[:2] == ["FT-Mamba + counts", "FT-Mamba"]
    best, pure = (comparison.evaluations[name].mean("HR@1") for name in names[:2])
    assert best > pure + 0.1
    facts = comparison.to_dict()["blend"]
    assert facts["weight"] > 0
    assert facts["counting"].startswith("PCTM(")
    assert facts["validation"]["blended"] > facts["validation"]["pure"]
    assert comparison.options["FT-Mamba + counts"]
    values = comparison.to_dict()
    assert values["differences"].keys() - values["differences_pure"].keys() == {"FT-Mamba"}
    gain = values["differences"]["FT-Mamba"]["difference"]
    assert values["differences_pure"]["FT-Mamba + counts"]["difference"] == -gain


def test_the_card_shows_both_models_and_what_was_blended(blended):
    card = with_card(load_checkpoint(blended[3])).card
    assert "| **FT-Mamba + counts**" in card or "| FT-Mamba + counts" in card
    assert "| FT-Mamba |" in card
    assert re.search(r"blend=the towers \+ 16 x PCTM\(.* x log popularity \(", card)


def test_nothing_is_blended_where_nothing_helps(blended, monkeypatch):
    split, trained, *_ = blended
    useless = Blending(None, None, 0.0, 0.0, 0.0, "HR@1", 0.5, 0.5)
    monkeypatch.setattr("ftmamba.comparison.choose_blend", lambda *_, **__: useless)
    recipe = recipe_from_dict({"data": {"name": "-"}, "blend": "auto",
                               "evaluation": {"k": [1], "selection_metric": "HR@1"}})  # fmt: skip
    again = compare(recipe, ring_tables(), split, trained, Accelerator(cpu=True))
    assert list(again.evaluations) == ["FT-Mamba"]
    assert again.blend is None
    assert again.to_dict()["blend"]["weight"] == 0


def test_recommender_pipeline_and_evaluation_give_the_scores_of_the_definition(blended):
    split, trained, comparison, folder = blended
    recommender = Recommender.from_pretrained(folder)
    blend = recommender.catalogue.blend
    histories = histories_of(split.before_test).items
    users = np.arange(N_USERS)
    items = [histories.item_ids[histories.starts[u] : histories.starts[u + 1]] for u in users]
    towers = held_out_scorer(trained, split)
    expected = slow_scores(towers.scores(users), blend, [one.tolist() for one in items])
    evaluated = BlendedScorer(towers, comparison.blend, histories).scores(users)
    np.testing.assert_allclose(evaluated, expected, atol=1e-5)
    keys = [f"u{user}" for user in users]
    found = recommender.recommend_batch(user_keys=keys, k=N_ITEMS, exclude_seen=False)
    pipe = FTMambaRecommendationPipeline(
        FTMambaTwoTowerModel.from_pretrained(folder),
        FTMambaFeatureExtractor.from_pretrained(folder),
        catalogue=folder / "catalogue.safetensors",
    )
    item_keys = recommender.catalogue.keys
    records = [
        {**recommender.users.record(u), "history": [item_keys[item] for item in own]}
        for u, own in zip(users, items, strict=True)
    ]
    piped = pipe(records, top_k=N_ITEMS, exclude_seen=False)
    for user in users:
        mine = {recommender.catalogue.row(one.item_key): one.score for one in found[user]}
        theirs = {recommender.catalogue.row(one["item_key"]): one["score"] for one in piped[user]}
        scores_I = [mine[item] for item in range(N_ITEMS)]
        np.testing.assert_allclose(scores_I, expected[user], atol=1e-5)
        np.testing.assert_allclose(
            [theirs[item] for item in range(N_ITEMS)], expected[user], atol=1e-5
        )
    one = recommender.score(records[3], item_keys[5])
    assert one == pytest.approx(expected[3, 5], abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4, 6])
def test_a_stream_gives_the_scores_of_the_recommender(blended, batch_size):
    checkpoint = load_checkpoint(blended[3])
    observer, recommender = CheckpointObserver(checkpoint), Recommender(checkpoint)
    store, shown = SQLiteStore(), {}
    items = ["i03", "i04", "i09", "i04", "i10", "i11"]
    events = [UserEvent("new", Event(item), f"e{n}", None, None) for n, item in enumerate(items)]
    consume(
        ListSource(events), store, observer, Rules(batch_size=batch_size),
        updated=lambda keys, state: shown.update(zip(keys, observer.scores(state), strict=True)),
    )  # fmt: skip
    found = recommender.recommend(record={"history": items}, k=N_ITEMS, exclude_seen=False)
    expected = {one.item_key: one.score for one in found}
    scores_I = [expected[key] for key in checkpoint.catalogue.keys]
    np.testing.assert_allclose(shown["new"], scores_I, atol=1e-5)
    state = observer.unpack([store.get(["new"])[0].state])
    np.testing.assert_allclose(observer.scores(state)[0], scores_I, atol=1e-5)
    added = checkpoint.catalogue.blend.added([checkpoint.catalogue.rows(items)])
    assert np.abs(added).max() > 0.1


def test_an_explanation_says_what_counting_adds(blended):
    recommender = Recommender.from_pretrained(blended[3])
    blend = recommender.catalogue.blend
    history = ["i03", "i04", "no item", "i09", "i10"]
    record = {"age": 30, "history": history}
    found = recommender.explain(record, "i11")
    assert found.score == pytest.approx(recommender.score(record, "i11"), abs=1e-4)
    parts = [sum(shares.values()) for shares in (found.user, found.item, found.counts)]
    assert sum(parts) == pytest.approx(found.score - found.baseline_score, abs=1e-4)
    rows = [-1 if row is None else row for row in recommender.catalogue.rows(history)]
    added = blend.added([rows])[0, recommender.catalogue.row("i11")]
    assert parts[2] == pytest.approx(added, abs=1e-5)
    assert found.counts_values["items often chosen after the history"].startswith("i10 + ")
    assert found.counts_values["popularity"].endswith(" interactions")
    assert {row[0] for row in found.ranked()} == {"user", "item", "counts"}
    assert "+ i0" in explanation_table(found)
    assert "counted of what others chose" in draw_shares(found.to_dict())
    alone = recommender.explain({"age": 30}, "i11")
    assert set(alone.counts) == {"popularity"}
    assert alone.score == pytest.approx(recommender.score({"age": 30}, "i11"), abs=1e-4)


def test_a_state_that_kept_no_items_goes_on_with_unknown_ones(blended):
    checkpoint = load_checkpoint(blended[3])
    observer = CheckpointObserver(checkpoint)
    event = UserEvent("new", Event("i03"), "e1", None, None)
    state = observer.observe(observer.start([event]), [[event]])
    again = observer.unpack(observer.pack(replace(state, recent=state.recent[:, :0])))
    assert again.recent.shape == state.recent.shape
    assert again.recent.max() == -1
    wrong = observer.pack(replace(state, recent=state.recent + N_ITEMS))
    with pytest.raises(ValueError, match="items that the catalogue has not"):
        observer.unpack(wrong)


def test_the_evaluation_of_a_checkpoint_is_the_one_of_its_run(blended, monkeypatch):
    *_, comparison, folder = blended
    monkeypatch.setattr("ftmamba.commands.evaluate.tables_of", lambda _recipe: ring_tables())
    _, again = repeat_evaluation(load_checkpoint(folder))
    first = next(iter(comparison.evaluations.values()))
    np.testing.assert_array_equal(again.recommended, first.recommended)


def test_a_blend_is_saved_and_read_back(blended, tmp_path):
    catalogue = load_catalogue(blended[3] / "catalogue.safetensors")
    catalogue.save(tmp_path / "again.safetensors")
    again = load_catalogue(tmp_path / "again.safetensors").blend
    assert again.weight == catalogue.blend.weight > 0
    np.testing.assert_array_equal(again.evidence, catalogue.blend.evidence)
    np.testing.assert_array_equal(again.starts, catalogue.blend.starts)
    with safe_open(tmp_path / "again.safetensors", framework="np") as file:
        assert "blend/evidence" in file.keys()  # noqa: SIM118


WRONG = {
    "no neighbour": ({"neighbours": np.array([0, 3], np.int32)}, "do not fit its 3 items"),
    "starts": ({"starts": np.array([0, 2, 1, 2])}, "do not fit"),
    "a type": ({"evidence": np.ones(2)}, "do not fit"),
    "must be finite": ({"evidence": np.array([1, np.inf], np.float32)}, "must be finite"),
    "a weight": ({"weight": float("nan")}, "must be finite"),
    "a history": ({"max_history": 0}, "max_history"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_a_damaged_blend_is_refused(change, message):
    blend = Blend(np.array([0, 1, 1, 2]), np.array([1, 2], np.int32),
                  np.ones(2, np.float32), np.zeros(3, np.float32))  # fmt: skip
    with pytest.raises(ValueError, match=message):
        replace(blend, **change)
    with pytest.raises(ValueError, match="must have one each"):
        Catalogue(("a", "b"), ("", ""), torch.zeros(2, 4).numpy(), blend=blend)


def test_popularity_decays_by_half_in_a_half_life_and_counts_nothing_later():
    train = interactions_of((0, 0, 1), (0, 1, 8), (1, 1, 9))
    expected = np.log1p([0.5 ** (8 / 7), 0.5 ** (1 / 7), 0, 0])
    np.testing.assert_allclose(log_popularity(train, 7, 9 * DAY), expected, rtol=1e-6)
    np.testing.assert_allclose(log_popularity(train, None, None), np.log1p([1, 2, 0, 0]))


@pytest.mark.parametrize(
    ("means", "order", "first"),
    [([0.2, 0.5, 0.9], (0, 1, 2), 2), ([0.2, 0.88, 0.9], (0, 1, 2), 1), ([0.9, 0.1], (1, 0), 0)],
)
def test_of_what_is_about_as_good_the_first_is_taken(means, order, first):
    noise_U = np.random.default_rng(0).normal(0, 0.2, 50)
    noise_U -= noise_U.mean()
    values_NU = np.array(means)[:, None] + np.arange(len(means))[:, None] * noise_U
    assert first_as_good(values_NU, order) == first
