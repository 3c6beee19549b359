"""Tokens by hand."""

import math

import pytest
import torch

from modeling_ftmamba import FTMambaTowerConfig, FTMambaTowerModel
from modeling_ftmamba.network import TowerInputs

from .conftest import COLUMNS, make_tensors, shake


def tokenizer(columns, **fields):
    config = FTMambaTowerConfig(columns=columns, hidden_size=4, **fields)
    return shake(FTMambaTowerModel(config)).eval().tokenizer


def tokens_of(tokenizer, **tensors):
    return tokenizer(TowerInputs(**tensors), len(next(iter(tensors.values())))).hidden


def test_a_numeric_token_is_value_times_weight_plus_bias():
    tokens = tokenizer([{"name": "a", "kind": "numeric"}])
    embedding = tokens.kinds["numeric"].embedding
    out = tokens_of(tokens, numeric=torch.tensor([[3.0]]))
    torch.testing.assert_close(out[0, 0], 3 * embedding.weight[0] + embedding.bias[0])


def test_a_missing_number_is_the_mean_plus_a_vector_of_its_own():
    tokens = tokenizer([{"name": "a", "kind": "numeric"}])
    group = tokens.kinds["numeric"]
    out = tokens_of(tokens, numeric=torch.tensor([[float("nan")]]))
    torch.testing.assert_close(out[0, 0], group.embedding.bias[0] + group.missing[0])


def test_categorical_columns_have_a_table_and_a_bias_each():
    columns = [
        {"name": "a", "kind": "categorical", "vocabulary_size": 5},
        {"name": "b", "kind": "categorical", "vocabulary_size": 6},
    ]
    tokens = tokenizer(columns)
    group = tokens.kinds["category_ids"]
    out = tokens_of(tokens, category_ids=torch.tensor([[4, 3]]))
    torch.testing.assert_close(out[0, 0], group.table.weight[4] + group.bias[0])
    torch.testing.assert_close(out[0, 1], group.table.weight[5 + 3] + group.bias[1])


def test_a_set_is_the_mean_of_its_members_without_padding():
    tokens = tokenizer([{"name": "a", "kind": "categories", "vocabulary_size": 6, "max_length": 3}])
    group = tokens.kinds["set_ids"]
    table, bias = group.tables[0].weight, group.bias[0]
    out = tokens_of(tokens, set_ids=torch.tensor([[3, 5, 0], [0, 0, 0]]))
    torch.testing.assert_close(out[0, 0], (table[3] + table[5]) / 2 + bias)
    torch.testing.assert_close(out[1, 0], bias)


def test_a_set_hides_its_members_and_never_its_padding():
    columns = [{"name": "a", "kind": "categories", "vocabulary_size": 6, "max_length": 3}]
    group = tokenizer(columns, unseen_probability=0.5).kinds["set_ids"].train()
    ids = torch.tensor([[3, 5, 0]]).expand(4000, -1)
    table, bias = group.tables[0].weight, group.bias[0]
    members = [torch.stack([table[i], table[j]]).mean(0) + bias for i in (2, 3) for j in (2, 5)]
    distances = (group(ids) - torch.stack(members)).abs().amax(-1)
    assert (distances.amin(1) < 1e-6).all()
    assert (distances.argmin(1).bincount() > 900).all()


def test_a_missing_vector_has_a_token_of_its_own():
    tokens = tokenizer([{"name": "a", "kind": "vector", "dimension": 2}])
    group = tokens.kinds["dense"]
    out = tokens_of(tokens, dense=torch.tensor([[1.0, 2.0], [math.nan, math.nan]]))
    weight, bias = group.maps[0].weight, group.maps[0].bias
    torch.testing.assert_close(out[0, 0], weight @ torch.tensor([1.0, 2.0]) + bias)
    torch.testing.assert_close(out[1, 0], bias + group.missing[0])


def test_piecewise_linear_components_by_hand():
    columns = [
        {"name": "a", "kind": "numeric", "edges": [0.0, 1.0, 3.0, 4.0]},
        {"name": "b", "kind": "numeric"},
    ]
    tokens = tokenizer(columns, numeric_embedding="ple")
    embedding = tokens.kinds["numeric"].embedding
    rows = [-2.0, 0.5, 2.0, 6.0]
    components = [[-2.0, 0.0, 0.0], [0.5, 0.0, 0.0], [1.0, 0.5, 0.0], [1.0, 1.0, 3.0]]
    out = tokens_of(tokens, numeric=torch.tensor([[x, x] for x in rows]))
    for row, (x, steps) in enumerate(zip(rows, components, strict=True)):
        expected = torch.tensor(steps) @ embedding.weight[0] + embedding.bias[0]
        torch.testing.assert_close(out[row, 0], expected)
        torch.testing.assert_close(out[row, 1], x * embedding.weight[1, 0] + embedding.bias[1])


def test_periodic_components_by_hand():
    tokens = tokenizer(
        [{"name": "a", "kind": "numeric"}], numeric_embedding="periodic", n_frequencies=2
    )
    embedding = tokens.kinds["numeric"].embedding
    angle = 2 * math.pi * embedding.frequency[0] * 0.7
    waves = torch.cat([angle.cos(), angle.sin()])
    expected = torch.relu(waves @ embedding.weight[0] + embedding.bias[0])
    torch.testing.assert_close(tokens_of(tokens, numeric=torch.tensor([[0.7]]))[0, 0], expected)


def test_tokens_stand_in_the_order_of_the_columns_and_cls_last():
    mixed = tokenizer(COLUMNS)
    tensors = make_tensors(2)
    out = tokens_of(mixed, **tensors)
    assert out.shape == (2, len(COLUMNS) + 1, 4)
    torch.testing.assert_close(out[0, -1], mixed.cls)
    numeric, categorical = (
        mixed.kinds[kind](tensors[kind]) for kind in ("numeric", "category_ids")
    )
    torch.testing.assert_close(out[:, 0], numeric[:, 0])
    torch.testing.assert_close(out[:, 1], categorical[:, 0])
    torch.testing.assert_close(out[:, 2], numeric[:, 1])
    torch.testing.assert_close(out[:, 5], categorical[:, 1])


def test_token_norm_comes_after_token_dropout():
    tokens = tokenizer([COLUMNS[1]], token_norm=True, token_dropout=0.5).train()
    ids = torch.tensor([[4], [8]])
    torch.manual_seed(3)
    out = tokens_of(tokens, category_ids=ids)
    torch.manual_seed(3)
    norm, tokens.norm = tokens.norm, None
    plain = tokens_of(tokens, category_ids=ids)
    assert (plain == 0).any()
    torch.testing.assert_close(out, norm(plain))


def test_special_ids_start_silent_and_training_hides_ids_as_often_as_asked():
    columns = [{"name": "a", "kind": "categorical", "vocabulary_size": 50}]
    config = FTMambaTowerConfig(columns=columns, hidden_size=4, unseen_probability=0.25)
    group = FTMambaTowerModel(config).tokenizer.kinds["category_ids"]
    assert (group.table.weight[:3] == 0).all()
    assert (group.table.weight[3:] != 0).any(1).all()
    ids = torch.full((4000, 1), 7)
    hidden = (group.train()(ids) == group.bias).all(-1).float().mean()
    assert 0.22 < hidden < 0.28
    assert not (group.eval()(ids) == group.bias).all(-1).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("numeric"),
            r"'numeric' must have shape \(records, 2\).*age, height; got None",
        ),
        (lambda t: t.update(dense=t["dense"][:, 1:]), r"'dense' must have shape \(records, 11\)"),
        (lambda t: t.update(set_ids=t["set_ids"][0]), r"'set_ids'.*got \(3,\)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(change, message):
    config = FTMambaTowerConfig(columns=COLUMNS, hidden_size=4)
    tensors = make_tensors(2)
    change(tensors)
    with pytest.raises(ValueError, match=message):
        FTMambaTowerModel(config, "user")(**tensors)
