"""A user's state equals the full recomputation, however a history is split into calls."""

import math
from itertools import pairwise

import pytest
import torch

from modeling_ftmamba import network
from modeling_ftmamba.user_state import NO_TIME, UserState, gaps_of

from .conftest import COLUMNS, HISTORY, make_events, make_tensors
from .test_history import PROFILE, make_model, make_users, row_of

VARIANTS = [
    {"pooling": "last"},
    {},
    {"mixer": "ssd", "ssd_head_size": 8},
    {"pooling": "last", "history_start": True, "time_decay": True, "normalize_embeddings": True},
    {"mixer": "ssd", "pooling": "last", "time_decay": True, "mixer_feed_forward": True},
    {"norm_position": "sum", "mixer_residual": False, "token_norm": True, "final_norm": False},
    {"conv_kernel": 1, "norm_position": "post", "mixer_feed_forward": True, "pooling": "last"},
    {"num_hidden_layers": 1, "conv_kernel": 6, "hidden_size": 8, "with_head": False},
]
LENGTHS = [7, 0, 4, 1, 2]
PROFILE_NAMES = [f"user_{name}" for name in make_tensors(1)]


def start(model, users, n_rows=5):
    profile = {name: users[name] for name in PROFILE_NAMES if name in users}
    return model.start(**profile) if profile else model.start(n_users=n_rows)


def observe_in_calls(model, users, cuts):
    """Observe a ragged batch, of each user the events between two cuts a call."""
    state = start(model, users)
    for first, end in pairwise(cuts):
        state = model.observe(
            state,
            users["user_history"][:, first:end],
            (users["user_history_lengths"] - first).clamp(0, end - first),
            event_features=users["user_event_features"][:, first:end],
        )
    return state


SPLITS = [[0, 7], [0, 1, 2, 3, 4, 5, 6, 7], [0, 3, 3, 4, 7], [0, 6, 7]]


@pytest.mark.parametrize("columns", [PROFILE, [HISTORY]], ids=["profile", "alone"])
@pytest.mark.parametrize("cuts", SPLITS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_any_split_equals_the_full_forward(variant, cuts, columns):
    model = make_model(columns, **variant)
    users = make_users(model, LENGTHS)
    state = observe_in_calls(model, users, cuts)
    expected = model.get_user_embeddings(**users).detach()
    torch.testing.assert_close(model.embed(state), expected, rtol=0, atol=1e-10)
    assert state.n_events.tolist() == LENGTHS
    assert expected.std() > 1e-3


@pytest.mark.parametrize("scan", ["auto", "sequential"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_stays_within_rounding_of_the_fast_forward(variant, scan):
    model = make_model(**variant).float()
    model.set_scan(scan)
    lengths = [150, 33, 0, 80]
    users = make_tensors(4, "user_") | make_events(lengths, size=model.config.projection_size)
    state = start(model, users)
    for first in range(0, 150, 50):
        state = model.observe(
            state,
            users["user_history"][:, first : first + 50],
            (users["user_history_lengths"] - first).clamp(0, 50),
            event_features=users["user_event_features"][:, first : first + 50],
        )
    assert state.scan.dtype is torch.float32
    expected = model.get_user_embeddings(**users).detach()
    assert (model.embed(state) - expected).abs().max() < 1e-5 * max(1, expected.abs().max())


@pytest.mark.parametrize("mixer", ["mamba", "ssd"])
def test_many_users_are_read_some_at_a_time(monkeypatch, mixer):
    model = make_model(pooling="last", mixer=mixer)
    users = make_users(model, LENGTHS)
    monkeypatch.setattr(network, "_NUMBERS_AT_A_TIME", 2 * 32 * 4 * 2)
    sizes, advance = set(), network.FTMambaLayer.advance

    def counted(layer, hidden, state, part):
        sizes.add(len(hidden))
        return advance(layer, hidden, state, part)

    for layer in model.user_tower.layers:
        layer.advance = counted.__get__(layer)
    expected = model.get_user_embeddings(**users).detach()
    state = observe_in_calls(model, users, [0, 2, 3, 4, 5, 6, 7])
    torch.testing.assert_close(model.embed(state), expected, rtol=0, atol=1e-10)
    assert {1, 2, 4} <= sizes


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_state_before_any_event_is_the_profile_alone(variant):
    model = make_model(**variant)
    users = make_tensors(3, "user_", dtype=torch.float64)
    expected = model.get_user_embeddings(**users).detach()
    torch.testing.assert_close(model.embed(model.start(**users)), expected, rtol=0, atol=1e-10)


def test_embedding_a_state_does_not_change_it_and_observing_leaves_the_old_one():
    model = make_model()
    users = make_users(model, LENGTHS)
    before = start(model, users)
    kept = UserState(*(tensor.clone() for tensor in before.tensors().values()))
    after = model.observe(before, users["user_history"], users["user_history_lengths"])
    model.embed(before)
    model.embed(after)
    for name, tensor in before.tensors().items():
        assert torch.equal(tensor, getattr(kept, name))
    assert not after.scan.requires_grad


def test_rows_are_chosen_and_put_together():
    model = make_model()
    users = make_users(model, LENGTHS)
    state = observe_in_calls(model, users, [0, 7])
    whole = model.embed(state)
    for rows in ([3, 0], torch.tensor([3, 0]), slice(1, 4)):
        part = state.select(rows)
        torch.testing.assert_close(model.embed(part), whole[rows], rtol=1e-12, atol=1e-14)
    parts = [state.select(slice(0, 2)), state.select([2]), state.select(slice(3, 5))]
    again = UserState.concatenate(parts)
    assert len(again) == 5
    for name, tensor in state.tensors().items():
        assert torch.equal(getattr(again, name), tensor)
    with pytest.raises(ValueError, match=r"of one model and type, got .*float16"):
        UserState.concatenate([state, state.to(torch.float16)])
    with pytest.raises(ValueError, match="of one model and type"):
        UserState.concatenate([])


def bytes_of(state):
    return sum(tensor.nbytes for tensor in state.tensors().values())


def test_half_precision_takes_half_and_stays_near():
    model = make_model(pooling="last").float()
    users = make_tensors(5, "user_") | make_events(LENGTHS)
    state = observe_in_calls(model, users, [0, 7])
    half = state.to(torch.float16)
    numbers = state.conv.nbytes + state.scan.nbytes + state.last.nbytes
    assert bytes_of(state) - bytes_of(half) == numbers / 2
    assert half.n_events.dtype is torch.int64
    more = make_events([2] * 5, seed=3)["user_history"]
    exact, near = (model.embed(model.observe(one, more)) for one in (state, half))
    assert 0 < (exact - near).abs().max() < 5e-3 * exact.abs().max()


def test_a_user_of_four_layers_takes_less_than_forty_kilobytes():
    sizes = {"hidden_size": 64, "num_hidden_layers": 4, "state_size": 16, "projection_size": 8}
    model = make_model([HISTORY], pooling="last", **sizes).float()
    assert bytes_of(model.start().to(torch.float16)) < 40_000


def test_gaps_are_made_of_times_across_calls():
    model = make_model(pooling="last", time_decay=True)
    users = make_users(model, [4])
    times = torch.tensor([[100, 100, 160, 10_160]])
    gaps = torch.tensor([0.0, 0.0, math.log1p(60), math.log1p(10_000)], dtype=torch.float64)
    users["user_event_features"][0, :, 0] = gaps
    expected = model.get_user_embeddings(**users).detach()
    for cuts in ([0, 4], [0, 1, 2, 3, 4]):
        state = start(model, users, 1)
        for first, end in pairwise(cuts):
            features = users["user_event_features"][:, first:end].clone()
            features[..., 0] = 55.0
            state = model.observe(
                state,
                users["user_history"][:, first:end],
                event_features=features,
                times=times[:, first:end],
            )
        torch.testing.assert_close(model.embed(state), expected, rtol=0, atol=1e-10)
        assert state.last_time.tolist() == [10_160]


def test_a_gap_beside_an_event_without_a_time_is_missing():
    model = make_model(pooling="last")
    state = start(model, make_users(model, [1, 1, 1]), 3)
    times = torch.tensor([[-1, 5, 9], [5, -1, 9], [5, 9, 8]])
    gaps = gaps_of(times, state, torch.tensor([3, 3, 2]))
    assert gaps[1, 0] == 0
    assert gaps.isnan().tolist() == [
        [True, True, False], [False, True, True], [False, False, False],
    ]  # fmt: skip
    assert gaps[0, 2] == math.log1p(4)


def test_an_event_older_than_the_state_is_refused_and_equal_times_are_not():
    model = make_model(pooling="last")
    users = make_users(model, [2, 2])
    state = start(model, users, 2)
    events = users["user_history"][:, :1]
    state = model.observe(state, events, times=torch.tensor([[50], [60]]))
    assert model.observe(state, events, times=torch.tensor([[50], [60]])).n_events.tolist() == [
        2,
        2,
    ]
    with pytest.raises(ValueError, match=r"event 0 of user 1.*time 59, before 60.*start it again"):
        model.observe(state, events, times=torch.tensor([[51], [59]]))
    with pytest.raises(ValueError, match=r"event 1 of user 0.*time 51, before 52"):
        model.observe(state, users["user_history"], times=torch.tensor([[52, 51], [60, 60]]))
    older = torch.tensor([[51], [59]])
    alone = model.observe(state, events, torch.tensor([1, 0]), times=older)
    assert alone.last_time.tolist() == [51, 60]
    assert alone.n_events.tolist() == [2, 1]
    assert model.observe(state, events).last_time.tolist() == [NO_TIME, NO_TIME]
    assert model.observe(state, events, torch.tensor([1, 0])).last_time.tolist() == [NO_TIME, 60]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"mixer": "attention", "causal_attention": True},
            "needs mixer 'mamba' or 'ssd'.*got 'attention'",
        ),
        ({"pooling": "mean"}, "need pooling 'cls' or 'last', got 'mean'"),
        ({"max_positions": 20}, "no max_positions, got 'mamba' and 20"),
    ],
)
def test_towers_that_cannot_stop_and_go_on_say_why(fields, message):
    with pytest.raises(ValueError, match=message):
        make_model(**fields).start(**make_tensors(1, "user_"))


def test_states_need_a_history_and_a_model_at_rest():
    with pytest.raises(ValueError, match="need a column of kind 'history' in the user tower"):
        make_model(COLUMNS).start(**make_tensors(1, "user_"))
    with pytest.raises(RuntimeError, match=r"call model.eval\(\)"):
        make_model().train().start(**make_tensors(1, "user_"))


def test_a_state_of_other_users_or_another_model_is_refused():
    model, other = make_model([HISTORY]), make_model([HISTORY], num_hidden_layers=1)
    events = make_events([1, 1], dtype=torch.float64)["user_history"]
    with pytest.raises(ValueError, match=r"a state of 2 users of this model has tensors of.*2, 32"):
        model.observe(model.start(n_users=3), events)
    with pytest.raises(ValueError, match="of another model: start it again"):
        model.embed(other.start())
    with pytest.raises(ValueError, match=r"must be int64 of shape \(2, 1\).*got torch.int64 of"):
        model.observe(model.start(n_users=2), events, times=torch.tensor([[1, 2]]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_suffix_is_the_shape(checked_shapes, variant):
    model = make_model(**variant)
    users = make_users(model, LENGTHS)
    with checked_shapes("modeling_ftmamba"):
        state = observe_in_calls(model, users, [0, 3, 4, 7])
        model.embed(model.observe(state, users["user_history"], times=torch.ones(5, 7).long()))
        assert row_of(users, 0)
