"""Laws of a tower that reads a history."""

import pytest
import torch

from modeling_ftmamba import FTMambaTwoTowerModel
from modeling_ftmamba.configuration_ftmamba import column_from_dict
from modeling_ftmamba.network import TowerInputs

from .conftest import COLUMNS, HISTORY, make_batch, make_config, make_events, make_tensors, shake

PROFILE = [*COLUMNS[:2], HISTORY, *COLUMNS[2:]]
LENGTHS = [3, 0, 6, 1]
CAUSAL = [
    {"pooling": "last"},
    {"pooling": "last", "mixer": "ssd", "norm_position": "sum", "mixer_feed_forward": True},
    {"pooling": "last", "mixer": "attention", "causal_attention": True, "max_positions": 20},
    {"pooling": "mean", "time_decay": True, "history_start": True},
    {"pooling": "mean", "num_hidden_layers": 0},
    {"pooling": "last", "scale_embedding": True, "history_start": True},
    {"pooling": "last", "time_decay": True, "history_start": True, "normalize_embeddings": True},
    {"pooling": "last", "mixer": "ssd", "time_decay": True, "token_norm": True},
    {"pooling": "last", "mixer_residual": False, "norm_position": "post", "projection_size": 16},
]
VARIANTS = [
    *CAUSAL,
    {},
    {"mixer": "attention", "causal_attention": True},
    {"pooling": "mean", "mixer": "ssd"},
    {"pooling": "mean", "num_hidden_layers": 0},
]


def make_model(columns=PROFILE, **architecture):
    torch.manual_seed(0)
    config = make_config(user_columns=columns, **architecture)
    return shake(FTMambaTwoTowerModel(config)).double().eval()


def make_users(model, lengths, **options):
    size = model.config.projection_size
    events = make_events(lengths, size=size, dtype=torch.float64, **options)
    columns = model.user_tower.config.columns
    if columns == [HISTORY]:
        return events
    return make_tensors(len(lengths), "user_", dtype=torch.float64) | events


def row_of(users, row, n_events=None):
    """Return one user alone, without padding, as of so many events."""
    alone = {name: tensor[row : row + 1] for name, tensor in users.items()}
    length = int(alone.pop("user_history_lengths")[0]) if n_events is None else n_events
    alone.pop("user_history_lengths", None)
    for name in ("user_history", "user_event_features"):
        alone[name] = alone[name][:, :length]
    return alone


def assert_near(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("columns", [PROFILE, [HISTORY]], ids=["profile", "alone"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_ragged_batch_equals_its_users_one_by_one_with_gradients(variant, columns):
    model = make_model(columns, **variant)
    users = make_users(model, LENGTHS)
    together = model.get_user_embeddings(**users)
    alone = torch.cat([model.get_user_embeddings(**row_of(users, row)) for row in range(4)])
    assert_near(together, alone)
    wanted = [p for p in model.user_tower.parameters() if p.requires_grad]
    gradients = [
        torch.autograd.grad(embeds.sin().sum(), wanted, allow_unused=True)
        for embeds in (together, alone)
    ]
    used = 0
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert_near(a, b)
            used += 1
    assert used >= len(wanted) - 3


@pytest.mark.parametrize("junk", [1e3, torch.inf, torch.nan])
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_stands_in_the_padding_changes_neither_values_nor_gradients(variant, junk):
    model = make_model(**variant)
    users = make_users(model, LENGTHS, max_length=8)
    beyond = torch.arange(8) >= users["user_history_lengths"][:, None]
    assert beyond.sum() == 22
    found = []
    for padding in (0.0, junk):
        events = {
            name: users[name].masked_fill(beyond[..., None], padding).requires_grad_()
            for name in ("user_history", "user_event_features")
        }
        embeds = model.get_user_embeddings(**users | events)
        wanted = [*events.values(), *model.user_tower.parameters()]
        gradients = torch.autograd.grad(embeds.sin().sum(), wanted, allow_unused=True)
        found.append([embeds, *gradients])
        assert not gradients[0][beyond].any()
    for clean, padded in zip(*found, strict=True):
        assert clean is padded is None or torch.equal(clean, padded)


@pytest.mark.parametrize("variant", [{"pooling": "last"}, {"pooling": "last", "mixer": "ssd"}])
def test_padding_that_is_not_finite_leaves_states_alone(variant):
    model = make_model(**variant)
    events = make_users(model, [2, 3], max_length=4)
    beyond = torch.arange(4) >= events["user_history_lengths"][:, None]
    columns = {name: x for name, x in events.items() if name.startswith("user_") and x.ndim == 2}
    states = []
    for padding in (0.0, torch.nan):
        history, features = (
            events[name].masked_fill(beyond[..., None], padding)
            for name in ("user_history", "user_event_features")
        )
        state = model.start(**columns)
        lengths = events["user_history_lengths"]
        states.append(model.observe(state, history, lengths, event_features=features))
    for name, tensor in states[0].tensors().items():
        assert torch.equal(tensor, states[1].tensors()[name]), name


@pytest.mark.parametrize("columns", [PROFILE, [HISTORY]], ids=["profile", "alone"])
@pytest.mark.parametrize("variant", CAUSAL)
def test_every_position_is_the_embedding_of_its_prefix(variant, columns):
    model = make_model(columns, **variant)
    users = make_users(model, LENGTHS)
    positions = model.get_user_positions(**users)
    assert positions.shape[:2] == (4, 7)
    for row, length in enumerate(LENGTHS):
        for n_events in range(length + 1):
            alone = model.get_user_embeddings(**row_of(users, row, n_events))
            assert_near(positions[row, n_events], alone[0])


@pytest.mark.parametrize("variant", CAUSAL)
def test_a_planted_future_item_never_changes_an_earlier_embedding(variant):
    model = make_model(**variant)
    users = make_users(model, [9, 9])
    before = model.get_user_positions(**users)
    users["user_history"][:, 5] += 1
    users["user_event_features"][:, 5] = 7
    moved = (model.get_user_positions(**users) - before).abs().amax((0, 2))
    assert (moved[:6] == 0).all()
    assert (moved[6:] > 1e-9).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_event_and_feature_moves_the_embedding(variant):
    model = make_model(**variant)
    users = make_users(model, [3])
    users["user_event_features"].nan_to_num_(0)
    before = model.get_user_embeddings(**users)
    for name in ("user_history", "user_event_features"):
        for event in range(3):
            for slot in range(users[name].shape[2]):
                changed = users[name].clone()
                changed[0, event, slot] += 1
                after = model.get_user_embeddings(**(users | {name: changed}))
                assert (after - before).abs().max() > 1e-8, (name, event, slot)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_history_is_an_empty_one(variant):
    model = make_model(**variant)
    users = make_users(model, [0, 0])
    assert users["user_history"].shape[1] == 0
    profile = {k: v for k, v in users.items() if k in make_tensors(1, "user_")}
    absent = model.get_user_embeddings(**profile)
    assert_near(model.get_user_embeddings(**users), absent)
    padded = make_users(model, [0, 0], max_length=4)
    assert_near(model.get_user_embeddings(**padded), absent)


def test_a_row_without_any_token_is_pooled_to_zero():
    model = make_model([HISTORY], pooling="last")
    tower, users = model.user_tower, make_users(model, [2, 0])
    pooled = tower.pooled(TowerInputs.of("user", users))
    assert (pooled[1] == 0).all()
    assert (pooled[0] != 0).any()
    empty = tower.embedding_of(pooled[1])
    assert_near(tower().embeds[0], empty)
    assert_near(model.get_user_positions(**users)[0, 0], empty)
    assert not tower.reads_before_events
    assert make_model([HISTORY], history_start=True).user_tower.reads_before_events
    assert make_model().user_tower.reads_before_events


def test_tokens_stand_in_order_and_cls_right_after_each_own_last_event():
    model = make_model(history_start=True, time_decay=True)
    tokenizer = model.user_tower.tokenizer
    users = make_users(model, [2, 0])
    inputs = TowerInputs.of("user", users)
    rows = tokenizer(inputs, 2)
    n_columns, start = len(COLUMNS), tokenizer.history.start
    assert rows.lengths.tolist() == [n_columns + 1 + 2 + 1, n_columns + 1 + 0 + 1]
    assert_near(rows.hidden[:, n_columns], start.expand(2, -1))
    first = n_columns + 1
    made, gaps = tokenizer.history(inputs)
    assert_near(rows.hidden[0, first : first + 2], made[0])
    assert_near(rows.hidden[0, first + 2], tokenizer.cls)
    assert_near(rows.hidden[1, first], tokenizer.cls)
    given = users["user_event_features"][..., 0].nan_to_num(0)
    assert_near(gaps, given * torch.tensor([[1.0], [0.0]]))  # the second user has no event
    assert_near(rows.gaps[0, first : first + 2], gaps[0])
    assert (rows.gaps[0, :first] == 0).all()
    assert rows.gaps[0, first + 2] == rows.gaps[1, first] == 0


def tokens_of(history, embeds, features=None):
    return history(TowerInputs(history=embeds, event_features=features))[0]


def test_a_token_of_an_event_by_hand():
    history = make_model().user_tower.tokenizer.history
    embeds = make_users(make_model(), [2])["user_history"]
    features = torch.tensor([[[0.5, 3.0], [float("nan"), 4.0]]], dtype=torch.float64)
    tokens = tokens_of(history, embeds, features)
    items = embeds[0] @ history.projection.weight.T
    gap, weight = history.feature_weight
    assert_near(tokens[0, 0], items[0] + 0.5 * gap + 3 * weight)
    assert_near(tokens[0, 1], items[1] + 4 * weight + history.missing[0])


def test_the_item_tower_learns_through_histories():
    model = make_model()
    items = model.get_item_embeddings(**make_tensors(5, "item_", dtype=torch.float64))
    users = make_tensors(2, "user_", dtype=torch.float64)
    taken = torch.tensor([[0, 3], [3, 4]])
    users["user_history"] = items[taken]
    model.get_user_embeddings(**users).sin().sum().backward()
    assert all(
        parameter.grad is not None and (parameter.grad != 0).any()
        for name, parameter in model.item_tower.layers.named_parameters()
    )


def test_positions_are_added_oldest_first_and_run_out_with_a_remedy():
    model = make_model(mixer="attention", causal_attention=True, max_positions=20)
    history = model.user_tower.tokenizer.history
    tokens = tokens_of(history, torch.zeros(1, 20, 8).double())[0] - history.missing.sum(0)
    assert_near(tokens, history.positions.weight)
    with pytest.raises(ValueError, match="21 events is longer than max_positions, 20; give"):
        tokens_of(history, torch.zeros(1, 21, 8).double())


def test_embeddings_are_scaled_and_what_is_added_to_them_is_not():
    model = make_model(
        mixer="attention", causal_attention=True, scale_embedding=True, max_positions=20
    )
    history = model.user_tower.tokenizer.history
    embeds = torch.randn(2, 3, 8, dtype=torch.float64)
    width = model.config.hidden_size
    added = history.missing.sum(0) + history.positions.weight[:3]
    expected = history.projection(embeds) * width**0.5 + added
    assert_near(tokens_of(history, embeds), expected)


@pytest.mark.parametrize("mixer", ["mamba", "ssd"])
def test_time_decay_has_no_effect_before_training(mixer):
    model = make_model(pooling="last", mixer=mixer, time_decay=True)
    users = make_users(model, [5, 5])
    weights = [layer.mixer.gap_weight for layer in model.user_tower.layers]
    fresh = FTMambaTwoTowerModel(model.config).user_tower.layers[0].mixer.gap_weight
    assert (fresh == 0).all()
    before = model.get_user_embeddings(**users)
    with torch.no_grad():
        for weight in weights:
            weight.zero_()
    silent = model.get_user_embeddings(**users)
    model.user_tower.tokenizer.history.gap_slot = None
    assert_near(model.get_user_embeddings(**users), silent)
    assert (before - silent).abs().max() > 1e-6


def wrong(users, **changes):
    return {k: v for k, v in (users | changes).items() if v is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user_history": torch.zeros(2, 3, 5)}, r"shape \(users, events, 8\).*\(2, 3, 5\)"),
        ({"user_history": torch.zeros(2, 3, 8).long()}, "must be floats.*int64"),
        ({"user_history": torch.zeros(3, 3, 8)}, "one number of records, got.*'history': 3"),
        ({"user_history_lengths": torch.tensor([1, 4])}, r"in 0..3.*got 4 in row 1"),
        ({"user_history_lengths": torch.tensor([1, -1])}, "got -1 in row 1"),
        ({"user_history_lengths": torch.tensor([1.0, 2.0])}, "must be whole numbers.*float32"),
        ({"user_history_lengths": torch.tensor([1])}, r"shape \(2,\), got.*\(1,\)"),
        ({"user_event_features": torch.zeros(2, 3, 1)}, r"shape \(2, 3, 2\), got \(2, 3, 1\)"),
    ],
)
def test_histories_that_do_not_fit_are_refused(changes, message):
    model = make_model()
    users = make_users(model, [3, 2])
    with pytest.raises(ValueError, match=message):
        model.get_user_embeddings(**wrong(users, **changes))


def test_a_tower_without_a_history_refuses_one_and_positions_need_one_token_an_event():
    model = make_model(COLUMNS)
    users = make_users(model, [3, 2])
    with pytest.raises(ValueError, match="user tower has no column of kind 'history', got one"):
        model.get_user_embeddings(**users)
    with pytest.raises(ValueError, match="need a column of kind 'history' in the user tower"):
        model.get_user_positions()
    with pytest.raises(ValueError, match="need pooling 'last' or 'mean', got 'cls'"):
        make_model().get_user_positions(**users)


@pytest.mark.parametrize("variant", [*VARIANTS, {"history_start": True}])
def test_every_suffix_is_the_shape(checked_shapes, variant):
    model = make_model(**variant).float().train()
    with checked_shapes("modeling_ftmamba"):
        model(**make_batch(4), **make_events(LENGTHS, model.config.projection_size))
        if model.config.pooling != "cls":
            users = make_tensors(4, "user_") | make_events(LENGTHS, model.config.projection_size)
            model.get_user_positions(**users).sum().backward()


SCALED = {
    **HISTORY, "event_features": ["gap", "price"], "event_scales": [[0.0, 1.0], [250.0, 4.0]],
}  # fmt: skip


@pytest.mark.parametrize("variant", [{}, {"time_decay": True, "pooling": "last"}])
def test_a_scaled_feature_is_read_as_the_model_without_scales_reads_it_standardised(variant):
    model = make_model([*COLUMNS, SCALED], **variant)
    plain = make_model([*COLUMNS, {**SCALED, "event_scales": []}], **variant)
    plain.load_state_dict(model.state_dict())
    users = make_users(model, LENGTHS)
    expected = plain.get_user_embeddings(**users)
    raw = users["user_event_features"].clone()
    raw[..., 1] = 250 + 4 * raw[..., 1]
    assert raw.isnan().any()
    assert_near(model.get_user_embeddings(**users | {"user_event_features": raw}), expected)
    unscaled = plain.get_user_embeddings(**users | {"user_event_features": raw})
    assert (unscaled - expected).abs().max() > 0.1


def test_a_missing_feature_is_the_mean_and_the_vector_of_what_is_missing():
    history = make_model([SCALED]).user_tower.tokenizer.history
    embeds = torch.zeros(1, 1, history.embedding_size, dtype=torch.float64)
    tokens = [
        tokens_of(history, embeds, torch.tensor([[[0.0, price]]], dtype=torch.float64))
        for price in (torch.nan, 250.0, 254.0)
    ]
    assert_near(tokens[0] - tokens[1], history.missing[1].expand(1, 1, -1))
    assert_near(tokens[2] - tokens[1], history.feature_weight[1].expand(1, 1, -1))


def test_a_model_in_16_bits_scales_in_32():
    far = {**SCALED, "event_scales": [[0.0, 1.0], [1e6, 2.0]]}
    history = make_model([far]).user_tower.tokenizer.history.to(torch.bfloat16)
    embeds = torch.zeros(1, 2, history.embedding_size, dtype=torch.bfloat16)
    features = torch.tensor([[[0.0, 1e6], [0.0, 1e6 + 2]]])
    tokens = tokens_of(history, embeds, features)
    torch.testing.assert_close(tokens[:, 1] - tokens[:, 0], history.feature_weight[1][None])


def test_columns_without_scales_are_written_as_before():
    assert column_from_dict(HISTORY).to_dict() == HISTORY
    assert column_from_dict(SCALED).to_dict() == SCALED
    assert column_from_dict(SCALED).context == ("price",)
