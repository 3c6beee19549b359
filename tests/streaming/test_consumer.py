"""Events become states: each once, in order of time, whoever else writes."""

from dataclasses import replace

import pytest
import torch

from ftmamba.streaming import (
    Batch,
    CheckpointObserver,
    Counts,
    Event,
    Rules,
    Stored,
    consume,
)
from ftmamba.streaming.consumer import in_order
from ftmamba.streaming.stores import MemoryStore

from .history_checkpoint import HISTORY, make_checkpoint, make_events


class ListSource:
    """Gives events from a list, and remembers what was acknowledged."""

    def __init__(self, events, problems=()):
        self.events, self.problems = list(events), list(problems)
        self.place = 0
        self.acknowledged = []

    def read(self, most_events):
        if self.place >= len(self.events) and not self.problems:
            return None
        batch = Batch(self.events[self.place : self.place + most_events], tuple(self.problems))
        self.problems = []
        self.place += most_events
        return batch

    def acknowledge(self, batch):
        self.acknowledged += batch.events

    def close(self):
        pass


def run(observer, events, store=None, rules=None, **options):
    store = MemoryStore() if store is None else store
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
    model, catalogue = checkpoint.model, checkpoint.catalogue
    rows = [catalogue.row(event.item_key) for event in events]
    times = torch.tensor([event.time for event in events])
    gaps = torch.cat([torch.zeros(1), times.diff().double().log1p()])
    weights = torch.tensor([event.weight for event in events])
    with torch.no_grad():
        return model.get_user_embeddings(
            **checkpoint.extractor(users=[record]),
            user_history=torch.from_numpy(catalogue.embeddings)[rows][None],
            user_event_features=torch.stack([gaps.float(), weights], 1)[None],
        )


def own(events, user):
    return [event for event in events if event.user_key == user]


def assert_near(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_every_user_ends_as_the_forward_pass_over_all_events(checkpoint, observer):
    events = make_events(120)
    updated = {}
    store, counts = run(
        observer,
        events,
        updated=lambda users, embeds: updated.update(zip(users, embeds, strict=True)),
    )
    assert (counts.messages, counts.observed, counts.new_users) == (120, 120, 9)
    assert len(store) == 9
    for user in store:
        known = {"u3": {"age": 29, "gender": "F"}, "u8": {}}.get(user)
        if known is None:
            continue
        expected = full_embedding(checkpoint, own(events, user), known)
        assert_near(embedding_of(observer, store, user), expected)
        assert_near(updated[user][None], expected)
        assert state_of(observer, store, user).n_events.tolist() == [len(own(events, user))]


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_states_do_not_depend_on_the_batches(observer, batch_size):
    events = make_events(60, n_users=3)
    whole, _ = run(observer, events, rules=Rules())
    parts, _ = run(observer, events, rules=Rules(batch_size=batch_size))
    for user in whole:
        assert_near(embedding_of(observer, parts, user), embedding_of(observer, whole, user))
        assert parts.get([user])[0].event_ids == whole.get([user])[0].event_ids


def test_events_that_come_again_change_nothing(observer):
    events = make_events(40, n_users=4)
    once, _ = run(observer, events)
    doubled = [event for event in events for _ in range(2)] + events[-20:]
    twice, counts = run(observer, doubled)
    assert (counts.observed, counts.duplicates) == (40, 60)
    for user in once:
        assert_near(embedding_of(observer, twice, user), embedding_of(observer, once, user))


def test_events_without_ids_count_as_often_as_they_come(observer):
    event = replace(make_events(1)[0], event_id="")
    store, counts = run(observer, [event] * 5)
    assert counts.observed == 5
    assert store.get([event.user_key])[0].event_ids == ()


def test_only_the_newest_ids_are_kept_and_never_fewer_than_a_batch(observer):
    events = make_events(30, n_users=1)
    store, _ = run(observer, events, rules=Rules(batch_size=4, n_event_ids=5))
    assert store.get(["u0"])[0].event_ids == ("e25", "e26", "e27", "e28", "e29")
    with pytest.raises(ValueError, match=r"n_event_ids must be batch_size \(9\) or more"):
        Rules(batch_size=9, n_event_ids=8)


def test_a_batch_out_of_order_is_taken_in_order_of_time(observer):
    events = make_events(12, n_users=2)
    ordered, _ = run(observer, events, rules=Rules())
    shuffled, counts = run(observer, events[::-1], rules=Rules())
    assert counts.late == 0
    assert_near(embedding_of(observer, shuffled, "u0"), embedding_of(observer, ordered, "u0"))


def test_events_of_one_second_stay_as_they_came_and_one_without_time_behind_its_elder():
    times = [5, None, 3, 3, None, 4, 5]
    events = [Event("u", f"i{n}", time=time) for n, time in enumerate(times)]
    assert [event.item_key for event in in_order(events)] == [
        "i2",
        "i3",
        "i4",
        "i5",
        "i0",
        "i1",
        "i6",
    ]
    assert [e.item_key for e in in_order([Event("u", "a"), Event("u", "b", time=0)])] == ["a", "b"]


def test_times_that_are_missing_are_no_error(observer):
    events = [replace(event, time=None) for event in make_events(20, n_users=2)]
    store, counts = run(observer, events)
    assert (counts.observed, counts.late) == (20, 0)
    assert state_of(observer, store, "u0").last_time.tolist() == [-1]


LATE = 9
"""The place of an event that comes long after its time."""


def late_events():
    events = make_events(30, n_users=1)
    return events, [*events[:LATE], *events[LATE + 1 :], events[LATE]]


def test_a_late_event_is_refused_and_told_once(observer):
    events, late = late_events()
    told = []
    store, counts = run(observer, [*late, replace(events[LATE], event_id="x")], report=told.append)
    expected, _ = run(observer, late[:-1])
    assert (counts.late, counts.observed, len(told)) == (2, 29, 1)
    assert "older than the user's newest" in told[0]
    assert_near(embedding_of(observer, store, "u0"), embedding_of(observer, expected, "u0"))


def test_a_late_event_is_accepted_as_if_it_were_the_newest(observer):
    events, late = late_events()
    store, counts = run(observer, late, rules=Rules(batch_size=1, late="accept"))
    expected, _ = run(observer, [*late[:-1], replace(events[LATE], time=events[-1].time)])
    assert (counts.late, counts.observed) == (1, 30)
    assert_near(embedding_of(observer, store, "u0"), embedding_of(observer, expected, "u0"))


def test_a_late_event_has_the_user_computed_anew(observer):
    events, late = late_events()
    # What was acknowledged, and of the last batch nothing: its events are put beside.
    rules = Rules(batch_size=7, late="recompute", history=lambda _user: late[:28])
    store, counts = run(observer, late, rules=rules)
    expected, _ = run(observer, events)
    assert (counts.late, counts.recomputed, counts.observed) == (1, 1, 30)
    assert_near(embedding_of(observer, store, "u0"), embedding_of(observer, expected, "u0"))
    assert sorted(store.get(["u0"])[0].event_ids) == sorted(event.event_id for event in events)


def test_late_events_need_a_rule_that_can_be_kept():
    with pytest.raises(ValueError, match="needs the users' earlier events"):
        Rules(late="recompute")
    with pytest.raises(ValueError, match=r"late must be one of refuse.* did you mean 'accept'"):
        Rules(late="accepted")
    with pytest.raises(ValueError, match="batch_size must be 1 or more"):
        Rules(batch_size=0)


def test_events_of_unknown_items_are_skipped_and_told_once(observer):
    events = make_events(10, n_users=2)
    odd = [Event("u0", "nothing", f"x{n}", time=10**9) for n in range(3)]
    told = []
    store, counts = run(observer, [*events[:5], *odd, *events[5:]], report=told.append)
    expected, _ = run(observer, events)
    assert (counts.unknown_items, counts.observed, len(told)) == (3, 10, 1)
    assert "item 'nothing' is not among the 20 of the catalogue" in told[0]
    assert_near(embedding_of(observer, store, "u0"), embedding_of(observer, expected, "u0"))


def test_an_unknown_item_is_embedded_by_the_columns_that_its_event_brings(checkpoint, observer):
    record = {"item_id": "i07", "year": 1987.0}
    event = Event("u", "i07", "e", time=5, weight=3.0)
    store, _ = run(observer, [event])
    unseen, counts = run(observer, [replace(event, item_key="new", item_record=record)])
    assert counts.unknown_items == 0
    assert_near(embedding_of(observer, unseen, "u"), embedding_of(observer, store, "u"))
    other, _ = run(observer, [replace(event, item_key="new", item_record={"year": 2020.0})])
    assert (
        embedding_of(observer, other, "u") - embedding_of(observer, store, "u")
    ).abs().max() > 1e-4


def test_a_history_of_unseen_items_alone_is_one(observer):
    events = [
        Event("u", f"new{n}", f"e{n}", time=n, item_record={"year": 2000.0 + n}) for n in range(30)
    ]
    store, counts = run(observer, events)
    assert counts.observed == 30
    assert embedding_of(observer, store, "u").isfinite().all()


@pytest.mark.parametrize("field", ["item_record", "user_record"])
def test_a_record_of_wrong_values_is_skipped_and_told(observer, field):
    told = []
    wrong = Event("u", "new", "e", item_record={"year": 2000.0}, user_record={"age": 30})
    wrong = replace(
        wrong, **{field: {"item_record": {"year": "x"}, "user_record": {"age": "x"}}[field]}
    )
    store, counts = run(observer, [wrong, *make_events(3)], report=told.append)
    assert (counts.malformed, counts.observed, len(told)) == (1, 3, 1)
    assert store.get(["u"]) == [None]


def test_a_new_user_starts_from_the_record_of_an_event_or_else_of_the_checkpoint(
    checkpoint, observer
):
    events = make_events(5, n_users=1)
    records = [None, None, {"age": 70.0, "gender": "M"}, None, None]
    told = [
        replace(event, user_record=record) for event, record in zip(events, records, strict=True)
    ]
    store, _ = run(observer, told)
    expected = full_embedding(checkpoint, events, {"age": 70.0, "gender": "M"})
    assert_near(embedding_of(observer, store, "u0"), expected)
    store, _ = run(observer, events)
    expected = full_embedding(checkpoint, events, {"age": 20, "gender": "F"})
    assert_near(embedding_of(observer, store, "u0"), expected)


def test_a_known_user_goes_on_from_what_the_checkpoint_knows(checkpoint, observer):
    (event,) = (replace(one, user_key="u5") for one in make_events(1))
    past = [
        Event("u5", f"i{place:02}", time=time, weight=weight)
        for place, (time, weight) in enumerate([(400, 4.0), (500, 2.0)])
    ]
    store, _ = run(observer, [event])
    expected = full_embedding(checkpoint, [*past, event], {"age": 35, "gender": None})
    assert_near(embedding_of(observer, store, "u5"), expected)
    assert state_of(observer, store, "u5").n_events.tolist() == [3]
    store, _ = run(observer, [replace(event, user_record={"age": 35})])
    assert state_of(observer, store, "u5").n_events.tolist() == [1]


def test_messages_that_are_no_events_are_counted_and_told_once(observer):
    told = []
    source = ListSource(make_events(2), ["line 1: bad", "line 2: bad"])
    counts = consume(source, MemoryStore(), observer, report=told.append)
    assert (counts.messages, counts.malformed, counts.observed) == (4, 2, 2)
    assert told == ["line 1: bad; skipped and counted, further ones will not be reported"]


class Meddling(MemoryStore):
    """A store to which somebody else writes between the first readings and their writes."""

    def __init__(self, others):
        super().__init__()
        self.others = list(others)

    def put_many(self, puts):
        if self.others:
            self.others.pop(0)(self)
        return super().put_many(puts)


def test_what_another_process_writes_meanwhile_is_kept(observer):
    events = make_events(40, n_users=3)
    mine, theirs = events[::2], events[1::2]

    def write(some):
        return lambda store: run(observer, some, store.inner, rules=Rules(late="accept"))

    store = Meddling([])
    store.inner = Inner(store)
    store.others = [write(theirs[:5]), write(theirs[:5]), write(theirs[5:])]
    _, counts = run(observer, mine, store, rules=Rules(batch_size=20, late="accept"))
    assert counts.conflicts > 0
    ids = {id_ for user in store for id_ in store.get([user])[0].event_ids}
    assert ids == {event.event_id for event in events}
    n_events = [state_of(observer, store, user).n_events.item() for user in store]
    assert sum(n_events) == 40


class Inner:
    """The same states, without anybody who meddles."""

    def __init__(self, store):
        self.store = store

    def __getattr__(self, name):
        return getattr(self.store, name)

    def put_many(self, puts):
        return MemoryStore.put_many(self.store, puts)


def test_a_user_who_is_always_changed_by_others_is_told(observer):
    class Refusing(MemoryStore):
        def put_many(self, puts):
            return [False] * len(puts)

    source = ListSource(make_events(3, n_users=1))
    with pytest.raises(OSError, match="changed by others 20 times in a row"):
        consume(source, Refusing(), observer)
    assert source.acknowledged == []


def test_what_could_not_be_stored_is_not_acknowledged(observer):
    class Gone(MemoryStore):
        def sync(self):
            raise ConnectionError("gone")

    source = ListSource(make_events(3))
    with pytest.raises(ConnectionError):
        consume(source, Gone(), observer)
    assert source.acknowledged == []


def test_states_of_other_weights_are_refused_with_their_user(observer):
    other = CheckpointObserver(make_checkpoint(initializer_range=0.3))
    events = make_events(5, n_users=1)
    store, _ = run(other, events[:2])
    with pytest.raises(
        ValueError, match=r"of user 'u0' .* made by other weights .* one store per model"
    ):
        consume(ListSource(events[2:]), store, observer)


def test_a_damaged_state_is_refused(observer):
    store = MemoryStore()
    store.put("u0", Stored(1, b"damaged"), 0)
    with pytest.raises(ValueError, match="are truncated or no state"):
        consume(ListSource(make_events(2, n_users=1)), store, observer)


def test_states_in_float16_stay_near(checkpoint, observer):
    half = CheckpointObserver(checkpoint, dtype=torch.float16)
    events = make_events(60, n_users=2)
    full, rounded = run(observer, events)[0], run(half, events)[0]
    assert len(rounded.get(["u0"])[0].state) < len(full.get(["u0"])[0].state)
    near = embedding_of(half, rounded, "u0") - embedding_of(observer, full, "u0")
    assert 0 < near.abs().max() < 0.02


def test_states_in_float16_and_float32_and_new_ones_meet_in_one_batch(checkpoint, observer):
    half = CheckpointObserver(checkpoint, dtype=torch.float16)
    users = [replace(event, user_key=f"u{n}") for n, event in enumerate(make_events(9))]
    again = [replace(event, event_id=f"{event.event_id}+") for event in users]
    store, _ = run(half, users[:3])
    run(observer, users[3:6], store)
    run(half, again, store, rules=Rules())
    full, _ = run(observer, [*users[:6], *again], rules=Rules(batch_size=6))
    for user in full:
        near = embedding_of(observer, store, user) - embedding_of(observer, full, user)
        assert near.abs().max() < 0.02


def test_a_model_of_a_history_alone_is_observed_too():
    checkpoint = make_checkpoint(user_columns=(HISTORY | {"event_features": []},))
    observer = CheckpointObserver(checkpoint)
    events = make_events(20, n_users=3)
    store, counts = run(observer, events)
    assert counts.observed == 20
    rows = [checkpoint.catalogue.row(event.item_key) for event in own(events, "u1")]
    items = torch.from_numpy(checkpoint.catalogue.embeddings)[rows][None]
    expected = checkpoint.model.get_user_embeddings(user_history=items).detach()
    assert_near(embedding_of(observer, store, "u1"), expected)


def test_a_model_without_a_history_is_refused():
    plain = make_checkpoint(user_columns=({"name": "age", "kind": "numeric"},))
    with pytest.raises(ValueError, match="no column of kind 'history'"):
        CheckpointObserver(plain)


def test_counts_add_up():
    assert Counts(messages=1, late=2) + Counts(messages=3) == Counts(messages=4, late=2)
