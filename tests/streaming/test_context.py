"""Events bring numbers, and states are those of the full forward pass over them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ftmamba.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ftmamba.streaming import CheckpointObserver, Event, Rules, consume
from ftmamba.streaming.sources import FileHistory, JsonLinesSource
from ftmamba.streaming.stores import MemoryStore

from .history_checkpoint import PROFILE, make_checkpoint, make_events, write_events

HISTORY = {
    "name": "taken",
    "kind": "history",
    "event_features": ["price", "gap", "on_sale", "weight"],
    "event_scales": [[250.0, 40.0], [0.0, 1.0], [0.5, 0.5], [0.0, 1.0]],
}


def with_prices(events):
    """Return the events with a price, most of them, and now and then another number."""
    rng = np.random.default_rng(1)
    brought = (
        {},
        {"price": 0.0, "on_sale": 1.0},
        {"price": 250.0, "of another model": 3.0},
        {"price": 400.0, "on_sale": 0.0},
        None,
    )
    return [replace(event, context=brought[rng.integers(len(brought))]) for event in events]


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    """Of the users that it knows, u5 has taken i00 and i01, the second at a price of 300."""
    made = make_checkpoint(user_columns=(*PROFILE, HISTORY))
    assert made.users is not None
    context = {"price": np.array([np.nan, 300], np.float32)}
    return replace(made, users=replace(made.users, context=context))


@pytest.fixture(scope="module")
def observer(checkpoint):
    return CheckpointObserver(checkpoint)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "events.jsonl"


def run(observer, path, events, **rules):
    write_events(path, events)
    source, store = JsonLinesSource(path), MemoryStore()
    if rules:
        rules["history"] = FileHistory(path, source)
    counts = consume(source, store, observer, Rules(batch_size=7, **rules))
    source.close()
    return store, counts


def embedding_of(observer, store, user):
    return observer.embed(observer.unpack([store.get([user])[0].state]))


def own(events, user):
    return [event for event in events if event.user_key == user]


def full_embedding(checkpoint, events, record):
    """Return the embedding of the forward pass over all events of one user."""
    rows = [checkpoint.catalogue.row(event.item_key) for event in events]
    times = torch.tensor([event.time for event in events])
    gaps = torch.cat([torch.zeros(1), times.diff().double().log1p().float()]).tolist()
    features = [
        [
            (event.context or {}).get("price", torch.nan),
            gap,
            (event.context or {}).get("on_sale", torch.nan),
            event.weight,
        ]
        for event, gap in zip(events, gaps, strict=True)
    ]
    with torch.no_grad():
        return checkpoint.model.get_user_embeddings(
            **checkpoint.extractor(users=[record]),
            user_history=torch.from_numpy(checkpoint.catalogue.embeddings)[rows][None],
            user_event_features=torch.tensor(features)[None],
        )


def assert_near(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_states_are_those_of_the_forward_pass_over_all_events(checkpoint, observer, path):
    events = with_prices(make_events(120))
    store, counts = run(observer, path, events)
    assert counts.observed == 120
    bare, _ = run(observer, path, [replace(event, context=None) for event in events])
    for user, record in (("u3", {"age": 29, "gender": "F"}), ("u8", {})):
        expected = full_embedding(checkpoint, own(events, user), record)
        assert_near(embedding_of(observer, store, user), expected)
        assert (embedding_of(observer, bare, user) - expected).abs().max() > 0.01


def test_a_known_user_goes_on_from_the_context_of_what_was_taken(checkpoint, observer, path):
    events = with_prices(make_events(80))
    store, _ = run(observer, path, events)
    taken = [
        Event("u5", "i00", time=400, weight=4.0),
        Event("u5", "i01", time=500, weight=2.0, context={"price": 300.0}),
    ]
    expected = full_embedding(checkpoint, [*taken, *own(events, "u5")], {"age": 35, "gender": None})
    assert len(own(events, "u5")) > 3
    assert_near(embedding_of(observer, store, "u5"), expected)


def test_a_saved_checkpoint_goes_on_as_before(checkpoint, observer, path, tmp_path):
    save_checkpoint(tmp_path / "run", checkpoint)
    loaded = CheckpointObserver(load_checkpoint(tmp_path / "run"))
    events = own(with_prices(make_events(80)), "u5")
    expected, _ = run(observer, path, events)
    store, _ = run(loaded, path, events)
    assert_near(embedding_of(loaded, store, "u5"), embedding_of(observer, expected, "u5"))


def test_a_user_is_computed_anew_from_the_context_in_a_file(observer, path):
    events = with_prices(make_events(30, n_users=1))
    expected, _ = run(observer, path, events)
    late = [*events[:4], *events[5:], events[4]]
    store, counts = run(observer, path, late, late="recompute")
    assert (counts.late, counts.recomputed) == (1, 1)
    assert_near(embedding_of(observer, store, "u0"), embedding_of(observer, expected, "u0"))


def test_a_context_of_nothing_that_the_model_reads_is_refused(observer):
    event = make_events(1)[0]
    contexts = ({"pricee": 3.0}, {"price": 3.0, "unread": 1.0}, {}, None)
    refused, *others = observer.refusals([replace(event, context=one) for one in contexts])
    assert others == [None, None, None]
    assert not refused.unknown_item
    message = (
        "has 'pricee'; did you mean 'price'?, and none of what the model reads: price, on_sale"
    )
    assert message in refused.reason


def test_a_model_without_context_takes_events_that_bring_some():
    observer = CheckpointObserver(make_checkpoint())
    event = replace(make_events(1)[0], context={"price": 3.0})
    assert observer.refusals([event]) == [None]


def test_a_model_in_16_bits_does_not_round_what_it_scales(checkpoint):
    model = make_checkpoint(
        user_columns=({**HISTORY, "event_scales": [[1e6, 1.0], *HISTORY["event_scales"][1:]]},)
    )
    model.model.to(torch.bfloat16)
    observer = CheckpointObserver(replace(model, users=None))
    low, high = (
        observer.embed(observer.observe(observer.start([event]), [[event]]))
        for event in (
            Event("u", "i00", time=1, context={"price": 1e6}),
            Event("u", "i00", time=1, context={"price": 1e6 + 2}),
        )
    )
    assert (low - high).abs().max() > 0.01
