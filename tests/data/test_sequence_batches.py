"""Windows of sequences: each event a target once, the same on one process and on many."""

from collections import Counter

import numpy as np
import pytest
import torch

from ftmamba.data.histories import histories_of
from ftmamba.data.interactions import Interactions
from ftmamba.data.sequence_batches import SequenceBatches, key_of_feature

COUNTS = [0, 1, 2, 3, 10, 11, 12, 15, 16, 20, 21, 22, 37, 64, 5, 9, 1, 30]


@pytest.fixture
def histories():
    """User u has `COUNTS[u]` events, of items 100 u, 100 u + 1, ..., a second apart."""
    users = np.repeat(np.arange(len(COUNTS)), COUNTS)
    steps = np.concatenate([np.arange(count) for count in COUNTS])
    n_items = 100 * len(COUNTS)
    weights = steps.astype(np.float32)
    # A name that is a key of a batch too.
    context = {"targets": (1000 * users + steps).astype(np.float32)}
    return histories_of(
        Interactions(users, users * 100 + steps, steps * 1, weights, len(COUNTS), n_items, context)
    )


def batches_of(histories, **options):
    options = {"max_length": 10, "batch_size": 4, "seed": 1, "windows": "every", **options}
    return SequenceBatches(histories, **options)


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def windows_in(batches):
    """Return (user, inputs, targets, first target) of every window."""
    return [
        (user.item(), ids[:n].tolist(), targets[:n].tolist(), first.item())
        for batch in batches
        for user, ids, n, targets, first in zip(
            *(
                batch[key]
                for key in ("user_ids", "history_ids", "lengths", "targets", "first_targets")
            ),
            strict=True,
        )
    ]


@pytest.mark.parametrize("epoch", range(5))
def test_every_event_is_a_target_once_an_epoch(histories, epoch):
    windows = windows_in(batches_of(histories).epoch(epoch))
    targets = Counter(target for _, _, found, _ in windows for target in found)
    firsts = Counter(first for *_, first in windows if first >= 0)
    wanted = {100 * u + t for u, count in enumerate(COUNTS) for t in range(1, count)}
    assert targets == Counter(wanted)
    assert firsts == Counter({100 * u for u, count in enumerate(COUNTS) if count > 1})


@pytest.mark.parametrize("windows", ["newest", "every"])
def test_a_target_is_the_event_after_its_input(histories, windows):
    found = windows_in(batches_of(histories, windows=windows).epoch(0))
    for user, inputs, targets, first in found:
        assert targets == [item + 1 for item in inputs]
        assert inputs == list(range(inputs[0], inputs[0] + len(inputs)))
        assert inputs[0] // 100 == user
        assert 1 <= len(inputs) <= 10
        assert first == (inputs[0] if inputs[0] % 100 == 0 else -1)


def test_the_newest_window_ends_with_the_last_event(histories):
    found = {user: targets for user, _, targets, _ in windows_in(
        batches_of(histories, windows="newest").epoch(0)
    )}  # fmt: skip
    assert found == {
        u: [100 * u + t for t in range(max(1, count - 10), count)]
        for u, count in enumerate(COUNTS)
        if count > 1
    }


def test_cuts_move_from_epoch_to_epoch_and_their_number_does_not(histories):
    batches = batches_of(histories)
    cuts = [
        {inputs[0] for user, inputs, *_ in windows_in(batches.epoch(epoch)) if user == 13}
        for epoch in range(8)
    ]
    assert len(set(map(frozenset, cuts))) > 3
    for epoch in range(8):
        epochs_batches = list(batches.epoch(epoch))
        assert len(epochs_batches) == batches.n_batches == len(batches)
        assert sum(len(batch["user_ids"]) for batch in epochs_batches) == batches.n_windows


def test_what_lies_beyond_the_end_is_zero_and_no_target(histories):
    n_padding = 0
    for batch in batches_of(histories).epoch(0):
        beyond = torch.arange(batch["targets"].shape[1]) >= batch["lengths"][:, None]
        assert (batch["targets"][beyond] == -1).all()
        for key in ("history_ids", "times", "gaps", "weights"):
            assert not batch[key][beyond].any()
        assert (batch["targets"][~beyond] >= 0).all()
        assert batch["lengths"].max() == batch["targets"].shape[1]
        n_padding += int(beyond.sum())
    assert n_padding > 0


def test_numbers_beside_the_inputs_are_those_of_the_inputs(histories):
    for batch in batches_of(histories).epoch(0):
        is_input = torch.arange(batch["targets"].shape[1]) < batch["lengths"][:, None]
        steps = batch["history_ids"] % 100
        assert torch.equal(batch["times"][is_input], steps[is_input])
        assert torch.equal(batch["weights"][is_input], steps[is_input].float())
        gaps = torch.where(steps == 0, 0.0, np.log(2))
        torch.testing.assert_close(batch["gaps"][is_input], gaps[is_input].float())


def test_an_epoch_repeats_exactly_and_differs_by_epoch_and_seed(histories):
    def windows(seed, epoch):
        return windows_in(batches_of(histories, seed=seed).epoch(epoch))

    assert windows(1, 2) == windows(1, 2)
    assert windows(1, 2) != windows(1, 3)
    assert windows(1, 2) != windows(2, 2)


def test_a_resumed_epoch_goes_on_where_it_stopped(histories):
    batches = batches_of(histories)
    whole = list(batches.epoch(3))
    assert len(whole) > 4
    for start in (0, 1, 4, len(whole)):
        rest = list(batches.epoch(3, start=start))
        assert len(rest) == len(whole) - start
        assert all(map(equal, rest, whole[start:]))


@pytest.mark.parametrize("n_ranks", [2, 3])
def test_ranks_share_the_global_batches_of_one_process_disjointly_and_equally(histories, n_ranks):
    one = batches_of(histories, batch_size=4 * n_ranks)
    many = [
        batches_of(histories, batch_size=4, rank=rank, n_ranks=n_ranks) for rank in range(n_ranks)
    ]
    shares = [list(each.epoch(5)) for each in many]
    assert len({len(share) for share in shares}) == 1
    assert len(shares[0]) == many[0].n_batches
    n_seen = 0
    for parts in zip(*shares, strict=True):
        sizes = {len(part["user_ids"]) for part in parts}
        assert len(sizes) == 1
        windows = [tuple(map(str, window)) for part in parts for window in windows_in([part])]
        assert len(set(windows)) == len(windows)
        n_seen += len(windows)
    assert n_seen == one.n_windows // n_ranks * n_ranks
    if one.n_windows % n_ranks == 0:
        whole = sorted(map(str, windows_in(one.epoch(5))))
        assert sorted(str(w) for share in shares for w in windows_in(share)) == whole


def test_batches_hold_windows_of_like_length():
    generator = np.random.default_rng(0)
    counts = generator.integers(2, 101, 400)
    users = np.repeat(np.arange(400), counts)
    histories = histories_of(Interactions(users, users, None, None, 400, 400))
    n_places = n_inputs = 0
    for batch in batches_of(histories, max_length=100, batch_size=16).epoch(0):
        n_places += batch["targets"].numel()
        n_inputs += int(batch["lengths"].sum())
        assert batch.keys() == {"user_ids", "history_ids", "lengths", "targets", "first_targets"}
    assert n_inputs == counts.sum() - 400
    assert n_places < 1.2 * n_inputs  # in order of chance 1.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"windows": "newst"}, "got 'newst'; did you mean 'newest'"),
        ({"max_length": 0}, "max_length must be >= 1, got 0"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"n_ranks": 0}, "n_ranks must be >= 1, got 0"),
        ({"rank": 2, "n_ranks": 2}, r"rank must be in \[0, 2\), got 2"),
        ({"n_ranks": 1000}, r"windows of users .* cannot be shared out among 1000 processes"),
    ],
)
def test_wrong_options_are_refused(histories, options, message):
    with pytest.raises(ValueError, match=message):
        batches_of(histories, **options)


def test_context_stands_beside_its_inputs(histories):
    n_events = 0
    for batch in batches_of(histories).epoch(0):
        inside = torch.arange(batch["history_ids"].shape[1]) < batch["lengths"][:, None]
        ids, context = batch["history_ids"][inside], batch[key_of_feature("targets")][inside]
        assert context.tolist() == (1000 * (ids // 100) + ids % 100).tolist()
        n_events += len(ids)
    assert n_events > 200
