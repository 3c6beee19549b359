"""Events become states: each once, in order of time, whoever else writes."""

import math
import shutil
import threading
import time
from dataclasses import replace

import pytest
import torch

from ftmamba import Recommender
from ftmamba.streaming import Batch, CheckpointObserver, Refused, Rules, Stored, consume
from ftmamba.streaming.consumer import in_order
from ftmamba.streaming.observer import states_to_bytes
from ftmamba.streaming.sources import JsonLinesSource
from ftmamba.streaming.stores import SQLiteStore
from modeling_ftmamba.pipeline_ftmamba import FTMambaRecommendationPipeline

from .history_checkpoint import (
    HISTORY,
    N_ITEMS,
    changed,
    event,
    make_checkpoint,
    make_events,
    write_events,
)

PAST = [
    event("u5", "i00", time=400.0, weight=4.0),
    event("u5", "i01", time=500.0, weight=2.0, context={"price": 300.0}),
]
"""The history of u5 in the checkpoint."""

RECORDS = {"u0": {"age": 20, "gender": "F"}, "u3": {"age": 29, "gender": "F"}, "u8": {}}


class ListSource:
    """Delivers events of a list, and remembers what was acknowledged."""

    def __init__(self, events, problems=(), name=""):
        self.events, self.problems = list(events), list(problems)
        if name:
            self.events = [
                replace(one, position=f"{number:03}") for number, one in enumerate(events, 1)
            ]
        self.start = 0
        self.acknowledged = []
        self.name, self.bookmark = name, ""

    def seek(self, position):
        pass

    def lost_after(self, _position):
        return ""

    def read(self, most_events):
        if self.start >= len(self.events) and not self.problems:
            return None
        events = self.events[self.start : self.start + most_events]
        batch = Batch(events, tuple(self.problems), events[-1].position if events else "")
        self.problems = []
        self.start += most_events
        return batch

    def acknowledge(self, batch):
        self.acknowledged += batch.events


def run(observer, events, store=None, rules=None, **options):
    store = SQLiteStore() if store is None else store
    source = ListSource(events)
    counts = consume(source, store, observer, rules or Rules(batch_size=7), **options)
    assert source.acknowledged == source.events
    return store, counts


def state_of(observer, store, user):
    return observer.unpack([store.get([user])[0].state])


def embedding_of(observer, store, user):
    return observer.embed(state_of(observer, store, user))


def full_embedding(checkpoint, events, record):
    """Return the embedding of the forward pass over all events of one user."""
    catalogue = checkpoint.catalogue
    rows = [catalogue.row(one.event.item) for one in events]
    times = torch.tensor([one.event.time for one in events], dtype=torch.float64)
    gaps = torch.cat([torch.zeros(1), times.diff().log1p()]).tolist()
    features = []
    for one, gap in zip(events, gaps, strict=True):
        price, on_sale = (one.event.context.get(name, math.nan) for name in ("price", "on_sale"))
        features.append([price, gap, on_sale, one.event.weight])
    with torch.no_grad():
        return checkpoint.model.get_user_embeddings(
            **checkpoint.extractor(users=[record]),
            user_history=torch.from_numpy(catalogue.embeddings)[rows][None],
            user_event_features=torch.tensor(features)[None],
        )


def own(events, user):
    return [one for one in events if one.user_key == user]


def assert_near(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch_size", [3, 7, 150])
def test_every_user_ends_as_the_forward_pass_over_all_events(checkpoint, observer, batch_size):
    events = make_events(120)
    updated = {}
    store, counts = run(
        observer,
        events,
        rules=Rules(batch_size=batch_size, n_event_ids=150),
        updated=lambda users, state: updated.update(zip(users, observer.embed(state), strict=True)),
    )
    assert (counts.messages, counts.observed, counts.new_users) == (120, 120, 9)
    assert len(store) == 9
    bare, _ = run(observer, [changed(one, context={}) for one in events])
    for user, record in RECORDS.items():
        expected = full_embedding(checkpoint, own(events, user), record)
        assert_near(embedding_of(observer, store, user), expected)
        assert_near(updated[user][None], expected)
        assert state_of(observer, store, user).n_events.tolist() == [len(own(events, user))]
        assert (embedding_of(observer, bare, user) - expected).abs().max() > 0.01


def test_a_batch_longer_than_the_models_history_counts_whole_and_the_newest_ids_are_kept():
    checkpoint = make_checkpoint(user_columns=(HISTORY | {"max_length": 3},))
    observer, events = CheckpointObserver(checkpoint), make_events(12, n_users=1)
    whole, _ = run(observer, events, rules=Rules())
    parts, _ = run(observer, events, rules=Rules(batch_size=1))
    assert state_of(observer, whole, "u0").n_events.tolist() == [12]
    assert_near(embedding_of(observer, whole, "u0"), embedding_of(observer, parts, "u0"))
    few, _ = run(observer, events, rules=Rules(batch_size=4, n_event_ids=5))
    assert few.get(["u0"])[0].event_ids == whole.get(["u0"])[0].event_ids[-5:]
    assert few.get(["u0"])[0].event_ids[-1] == "e11"


def test_events_that_are_delivered_again_change_nothing(observer):
    events = make_events(40, n_users=4)
    once, _ = run(observer, events)
    doubled = [one for one in events for _ in range(2)] + events[-20:]
    twice, counts = run(observer, doubled)
    assert (counts.observed, counts.duplicates) == (40, 60)
    for user in once:
        assert_near(embedding_of(observer, twice, user), embedding_of(observer, once, user))


def test_events_without_ids_count_as_often_as_they_are_delivered(observer):
    one = changed(make_events(1)[0], event_id="")
    store, counts = run(observer, [one] * 5)
    assert counts.observed == 5
    assert store.get([one.user_key])[0].event_ids == ()


def test_a_batch_is_observed_in_order_of_time(observer):
    events = make_events(12, n_users=2)
    ordered, _ = run(observer, events, rules=Rules())
    shuffled, counts = run(observer, events[::-1], rules=Rules())
    assert counts.late == 0
    assert_near(embedding_of(observer, shuffled, "u0"), embedding_of(observer, ordered, "u0"))
    # Equal times by arrival, and an event without a time after the one before it.
    times = [5, math.nan, 3, 3, math.nan, 4, 5]
    events = [event("u", str(number), time=time) for number, time in enumerate(times)]
    assert [one.event.item for one in in_order(events)] == list("2345016")
    events = [event("u", "a"), event("u", "b", time=0)]
    assert in_order(events) == events


def test_events_without_times_are_observed(observer):
    events = [changed(one, time=math.nan) for one in make_events(20, n_users=2)]
    store, counts = run(observer, events)
    assert (counts.observed, counts.late) == (20, 0)
    assert state_of(observer, store, "u0").last_time.tolist() == [-1]


@pytest.mark.parametrize("rule", ["refuse", "accept", "recompute"])
def test_an_event_that_arrives_late(observer, rule):
    events, reports = make_events(30, n_users=1), []
    late = [*events[:9], *events[10:], events[9]]
    refused = []
    size = 1 if rule == "accept" else 7
    rules = Rules(batch_size=size, late=rule, refuse=refused.extend)
    store, counts = run(observer, late, rules=rules, report=reports.append)
    expected = {
        "refuse": late[:-1],
        "accept": [*late[:-1], changed(events[9], time=events[-1].event.time)],
        "recompute": events,
    }[rule]
    assert (counts.late, counts.recomputed) == (1, rule == "recompute")
    assert counts.observed == len(expected)
    in_order_of_time, _ = run(observer, expected)
    assert_near(embedding_of(observer, store, "u0"), embedding_of(observer, in_order_of_time, "u0"))
    assert set(store.get(["u0"])[0].event_ids) == {one.event_id for one in expected}
    if rule == "refuse":
        run(observer, [changed(events[9], event_id=x) for x in "xy"], store, report=reports.append)
        assert "older than the user's newest" in reports[0]
        assert [(one.kind, one.message) for one in refused] == [("late", events[9].to_json())]
        assert len(reports) == 2  # one per run


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"late": "accepted"}, r"late must be one of refuse.* did you mean 'accept'"),
        ({"batch_size": 0}, "batch_size must be 1 or more"),
        ({"n_event_ids": 0}, "n_event_ids must be 1 or more"),
        ({"claim_seconds": 0}, "claim_seconds must be a positive number"),
    ],
)
def test_rules_that_cannot_hold_are_refused(rules, message):
    with pytest.raises(ValueError, match=message):
        Rules(**rules)


def test_events_of_unknown_items_are_skipped_and_reported_once(observer):
    events, reports = make_events(10, n_users=2), []
    odd = [event("u0", "nothing", f"x{n}", time=1e9) for n in range(3)]
    store, counts = run(observer, [*events[:5], *odd, *events[5:]], report=reports.append)
    expected, _ = run(observer, events)
    assert (counts.unknown_items, counts.observed, len(reports)) == (3, 10, 1)
    assert "item 'nothing' is not among the 20 of the catalogue" in reports[0]
    assert_near(embedding_of(observer, store, "u0"), embedding_of(observer, expected, "u0"))


def test_an_unknown_item_is_embedded_from_its_record(observer):
    record = {"item_id": "i07", "year": 1987.0}
    one = event("u", "i07", "e", time=5.0, weight=3.0)
    store, _ = run(observer, [one])
    unseen, counts = run(observer, [changed(one, item="new", item_record=record)])
    assert counts.unknown_items == 0
    assert_near(embedding_of(observer, unseen, "u"), embedding_of(observer, store, "u"))
    several = [
        changed(one, item=f"new{n}", event_id=f"e{n}", item_record={"year": 2020.0 + n})
        for n in range(9)
    ]
    other, counts = run(observer, several)
    assert counts.observed == 9
    difference = embedding_of(observer, other, "u") - embedding_of(observer, store, "u")
    assert difference.abs().max() > 1e-4


@pytest.mark.parametrize("field", ["item_record", "user_record"])
def test_an_event_with_a_wrong_record_is_skipped_and_reported(observer, field):
    records = {"item_record": {"year": 2000.0}, "user_record": {"age": 30}}
    wrong = event("u", "new", "e", **(records | {field: dict.fromkeys(records[field], "x")}))
    reports = []
    store, counts = run(observer, [wrong, *make_events(3)], report=reports.append)
    assert (counts.malformed, counts.observed, len(reports)) == (1, 3, 1)
    assert store.get(["u"]) == [None]


def test_a_context_without_any_column_of_the_model_is_refused(observer):
    contexts = ({"pricee": 3.0}, {"price": 3.0, "unread": 1.0}, {})
    refused, *others = observer.refusals([event("u", "i00", context=one) for one in contexts])
    assert others == [None, None]
    assert refused.kind == "malformed"
    assert "got: pricee; did you mean 'price'?" in refused.reason
    beside = event("u", "i00", context={"price": 3.0, "on_sail": 1.0})
    assert "did you mean 'on_sale'" in observer.refusals([beside])[0].reason


def test_a_user_starts_from_a_record_or_from_the_checkpoint(checkpoint, observer):
    events = make_events(5, n_users=1)
    record = {"age": 70.0, "gender": "M"}
    given = [changed(one, user_record=record if n == 2 else None) for n, one in enumerate(events)]
    store, _ = run(observer, given)
    assert_near(embedding_of(observer, store, "u0"), full_embedding(checkpoint, events, record))
    of_u5 = [changed(one, user_key="u5") for one in events]
    store, _ = run(observer, of_u5)
    expected = full_embedding(checkpoint, [*PAST, *of_u5], {"age": 35, "gender": None})
    assert_near(embedding_of(observer, store, "u5"), expected)
    assert state_of(observer, store, "u5").n_events.tolist() == [7]
    store, _ = run(observer, [changed(of_u5[0], user_record={"age": 35})])
    assert state_of(observer, store, "u5").n_events.tolist() == [1]


@pytest.mark.parametrize("evaluated", [True, False])
@pytest.mark.parametrize("asked", [None, True, False])
def test_seen_items_are_left_out_of_every_entrance_or_of_none(checkpoint, evaluated, asked):
    catalogue = replace(checkpoint.catalogue, exclude_seen=evaluated)
    checkpoint = replace(checkpoint, catalogue=catalogue)
    recommender, observer = Recommender(checkpoint), CheckpointObserver(checkpoint)
    recommend = FTMambaRecommendationPipeline(checkpoint.model, checkpoint.extractor, catalogue)
    record = {"films": ["i03", "in no catalogue", "i04", "i03"]}
    options = {"exclude_seen": asked}
    store, _ = run(observer, [event("u5", "i03", "e1"), event("u5", "i04", "e2")])
    state = state_of(observer, store, "u5")
    of_record = recommender.recommend(record=record, k=N_ITEMS, **options)
    (of_batch,) = recommender.recommend_batch(records=[record], k=N_ITEMS, **options)
    of_user = recommender.recommend(user_key="u5", k=N_ITEMS, **options)
    found = [
        *(({"i03", "i04"}, [one.item_key for one in found]) for found in (of_record, of_batch)),
        ({"i03", "i04"}, [one["item_key"] for one in recommend(record, top_k=N_ITEMS, **options)]),
        ({"i00", "i01"}, [one.item_key for one in of_user]),
        ({"i00", "i01", "i03", "i04"}, observer.recommend(["u5"], state, N_ITEMS, **options)[0]),
    ]
    is_kept = not (evaluated if asked is None else asked)
    for seen, keys in found:
        assert len(set(keys)) == N_ITEMS - (0 if is_kept else len(seen))
        assert is_kept or not seen & set(keys)


def test_a_state_of_a_store_that_kept_fewer_items_leaves_out_those_it_kept(checkpoint, observer):
    store, _ = run(observer, [event("u0", "i03", "e1"), event("u0", "i04", "e2")])
    state = state_of(observer, store, "u0")
    older = replace(state, recent=state.recent[:, -1:])
    (data,) = states_to_bytes(older, fingerprint=checkpoint.catalogue.fingerprint)
    (keys,) = observer.recommend(["u0"], observer.unpack([data]), N_ITEMS)
    assert set(checkpoint.catalogue.keys) - set(keys) == {"i04"}


def test_messages_that_are_not_events_are_counted_and_reported_once(observer):
    reports = []
    bad = [Refused("malformed", f"line {n}: bad") for n in (1, 2)]
    source = ListSource(make_events(2), bad)
    counts = consume(source, SQLiteStore(), observer, report=reports.append)
    assert (counts.messages, counts.malformed, counts.observed) == (4, 2, 2)
    assert len(reports) == 1
    assert "line 1: bad" in reports[0]


class Shared(SQLiteStore):
    """A store to which others write between the first reads and the writes based on them."""

    def __init__(self, others):
        super().__init__()
        self.others = list(others)

    def put_many(self, puts):
        if self.others:
            self.others.pop(0)()
        return super().put_many(puts)


def test_what_another_process_writes_meanwhile_is_kept(observer):
    events = make_events(40, n_users=3)
    rules = Rules(batch_size=8, late="accept")

    def write(some):
        rest, store.others = store.others, []
        run(observer, some, store, rules=rules)
        store.others = rest

    theirs = events[1::2]
    parts = (theirs[:5], theirs[:5], theirs[5:])
    store = Shared([lambda part=part: write(part) for part in parts])
    _, counts = run(observer, events[::2], store, rules=rules)
    assert counts.conflicts > 0
    ids = {id_ for user in store for id_ in store.get([user])[0].event_ids}
    assert ids == {one.event_id for one in events}
    assert sum(state_of(observer, store, user).n_events.item() for user in store) == 40


def test_what_could_not_be_stored_is_not_acknowledged(observer):
    class Refusing(SQLiteStore):
        def put_many(self, puts):
            return [False] * len(puts)

    class Gone(SQLiteStore):
        def sync(self):
            raise ConnectionError("gone")

    for store, message in ((Refusing(), "changed by others 20 times in a row"), (Gone(), "gone")):
        source = ListSource(make_events(3, n_users=1))
        with pytest.raises(OSError, match=message):
            consume(source, store, observer)
        assert source.acknowledged == []


def test_states_that_are_damaged_or_of_other_weights_are_refused_with_their_user(observer):
    other = CheckpointObserver(make_checkpoint(initializer_range=0.3))
    events = make_events(5, n_users=1)
    store, _ = run(other, events[:2])
    with pytest.raises(ValueError, match=r"of user 'u0' .* other weights .* one store per model"):
        consume(ListSource(events[2:]), store, observer)
    store = SQLiteStore()
    store.put("u0", Stored(1, b"damaged"), 0)
    with pytest.raises(ValueError, match="of user 'u0'"):
        consume(ListSource(events), store, observer)


def test_states_in_float16_and_float32_and_new_ones_meet_in_one_batch(checkpoint, observer):
    half = CheckpointObserver(checkpoint, dtype=torch.float16)
    users = [changed(one, user_key=f"u{n}") for n, one in enumerate(make_events(9))]
    again = [changed(one, event_id=f"{one.event_id}+") for one in users]
    store, _ = run(half, users[:3])
    run(observer, users[3:6], store)
    assert len(store.get(["u0"])[0].state) < len(store.get(["u3"])[0].state)
    run(half, again, store, rules=Rules())
    full, _ = run(observer, [*users[:6], *again], rules=Rules(batch_size=6))
    for user in full:
        error = (embedding_of(observer, store, user) - embedding_of(observer, full, user)).abs()
        assert 0 < error.max() < 0.02


@pytest.mark.parametrize("late", ["refuse", "recompute"])
def test_positions_recognise_what_no_window_of_ids_does(observer, late):
    events = make_events(60, n_users=2)
    rules = Rules(batch_size=4, n_event_ids=4, late=late)
    store, refused = SQLiteStore(), []
    consume(ListSource(events, name="s"), store, observer, rules)
    before = [store.get([user])[0] for user in ("u0", "u1")]
    again = replace(rules, refuse=refused.extend)
    counts = consume(ListSource(events, name="s"), store, observer, again)
    assert (counts.duplicates, counts.late, counts.observed, refused) == (60, 0, 0, [])
    assert [store.get([user])[0] for user in ("u0", "u1")] == before
    # The same positions of another stream are other events.
    counts = consume(ListSource([changed(events[-1], event_id="x")], name="t"), store, observer)
    assert counts.observed == 1


def test_a_state_that_began_again_after_it_had_vanished_is_made_whole(observer):
    events = make_events(40, n_users=2)
    whole, _ = run(observer, events)
    store, rules = SQLiteStore(), Rules(batch_size=8, late="recompute")
    consume(ListSource(events[:20], name="s"), store, observer, rules)
    store.delete("u0")
    rest = ListSource(events, name="s")
    rest.start = 20
    consume(rest, store, observer, rules)
    assert state_of(observer, store, "u0").n_events < len(own(events, "u0"))
    consume(ListSource(events, name="s"), store, observer, rules)
    for user in ("u0", "u1"):
        assert_near(embedding_of(observer, store, user), embedding_of(observer, whole, user))
        assert len(store.log(user)) == len(own(events, user))


@pytest.mark.parametrize(
    "poison",
    [
        {"user_record": {"age": 1e30}},
        {"weight": 9e29},
        {"context": {"price": 1e30}},
        {"item": "new", "item_record": {"year": 1e30}},
    ],
)
@pytest.mark.parametrize("at", [0, 4])
def test_an_event_that_overflows_is_refused_and_the_others_count(observer, poison, at):
    events, refused = make_events(12, n_users=2), []
    bad = changed(events[at], event_id="bad", **poison)
    rules = Rules(late="recompute", refuse=refused.extend)
    store, counts = run(observer, [*events[:at], bad, *events[at:]], rules=rules)
    expected, _ = run(observer, events, rules=Rules())
    assert (counts.too_large, counts.observed) == (1, 12)
    assert [(one.kind, one.message) for one in refused] == [("too_large", bad.to_json())]
    for user in expected:
        assert_near(embedding_of(observer, store, user), embedding_of(observer, expected, user))
        assert "bad" not in store.get([user])[0].event_ids


def test_a_log_that_began_late_does_not_replace_a_state(observer):
    events, refused = make_events(20, n_users=1), []
    store, _ = run(observer, events[5:10])
    rules = Rules(late="recompute", refuse=refused.extend)
    _, counts = run(observer, [*events[:5], *events[10:]], store, rules=rules)
    assert (counts.late, counts.recomputed, counts.observed) == (5, 0, 10)
    assert "the user's log lacks events" in refused[0].reason
    assert state_of(observer, store, "u0").n_events.tolist() == [15]


def test_a_user_with_the_longest_ids_and_keys_is_kept(observer, tmp_path):
    key = "u" * 1024
    events = [
        changed(one, user_key=key, event_id=f"{number:0512}")
        for number, one in enumerate(make_events(300, n_users=1))
    ]
    store = SQLiteStore(tmp_path / "states")
    _, counts = run(observer, events, store, rules=Rules())
    assert counts.observed == 300
    assert len(store.get([key])[0].event_ids) == 256


def test_two_consumers_of_one_file_lose_nothing(observer, tmp_path):
    events = make_events(200, n_users=5)
    write_events(tmp_path / "events", events)
    found = []

    def work():
        store, source = SQLiteStore(tmp_path / "states"), JsonLinesSource(tmp_path / "events")
        rules = Rules(batch_size=8, claim_seconds=5)
        found.append(consume(source, store, observer, rules))
        source.close()
        store.close()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = found[0] + found[1] + found[2]
    assert (total.observed, total.late, total.conflicts) == (200, 0, 0)
    store, expected = SQLiteStore(tmp_path / "states"), run(observer, events)[0]
    for user in expected:
        assert_near(embedding_of(observer, store, user), embedding_of(observer, expected, user))
    store.close()


def test_a_consumer_whose_claim_was_taken_writes_nothing_and_goes_on_where_the_other_was(
    observer, tmp_path
):
    events, reports = make_events(40, n_users=3), []
    write_events(tmp_path / "events", events)
    other = SQLiteStore(tmp_path / "states")

    class Paused(SQLiteStore):
        def put_many(self, puts):
            if len(other) == 0:  # Stopped for so long that another consumer has done the work.
                other.claim(self._claimed[0], "other", 0.01, instead_of=self._claimed[1])
                source = JsonLinesSource(tmp_path / "events")
                position = source.read(8).position
                source.close()
                run(observer, events[:8], other)
                other.advance(position)
                time.sleep(0.05)
            return super().put_many(puts)

    store = Paused(tmp_path / "states")
    rules = Rules(batch_size=8, claim_seconds=5)
    source = JsonLinesSource(tmp_path / "events")
    counts = consume(source, store, observer, rules, report=reports.append)
    assert counts.observed == 32
    assert "another consumer has claimed" in reports[0]
    assert sum(state_of(observer, store, user).n_events.item() for user in store) == 40
    source.close()
    store.close()
    other.close()


@pytest.mark.parametrize("what", ["gone", "older"])
def test_states_that_went_back_are_computed_again(observer, tmp_path, what):
    events, reports = make_events(40, n_users=3), []
    write_events(tmp_path / "events", events)

    def go_on(name):
        source = JsonLinesSource(tmp_path / "events", tmp_path / "offset")
        store = SQLiteStore(tmp_path / name)
        counts = consume(source, store, observer, Rules(batch_size=8), report=reports.append)
        source.close()
        return store, counts

    write_events(tmp_path / "events", events[:16])
    go_on("states")[0].close()
    shutil.copy(tmp_path / "states", tmp_path / "older")
    write_events(tmp_path / "events", events[:24])
    go_on("states")[0].close()
    assert reports == []
    write_events(tmp_path / "events", events)
    store, counts = go_on(what)
    assert counts.observed == {"gone": 40, "older": 24}[what]
    assert "lack events of file" in reports[0]
    assert sum(state_of(observer, store, user).n_events.item() for user in store) == 40
    store.close()


def test_a_model_without_a_history_is_refused():
    plain = make_checkpoint(user_columns=({"name": "age", "kind": "numeric"},))
    with pytest.raises(ValueError, match="no column of kind 'history'"):
        CheckpointObserver(plain)


def test_a_model_in_16_bits_does_not_round_a_context_before_scaling_it():
    scales = [[1e6, 1.0], *HISTORY["event_scales"][1:]]
    checkpoint = make_checkpoint(user_columns=({**HISTORY, "event_scales": scales},))
    checkpoint.model.to(torch.bfloat16)
    observer = CheckpointObserver(replace(checkpoint, users=None))
    low, high = (
        observer.embed(observer.observe(observer.start([one]), [[one]]))
        for one in (event("u", "i00", time=1, context={"price": 1e6 + more}) for more in (0, 2))
    )
    assert (low - high).abs().max() > 0.01
