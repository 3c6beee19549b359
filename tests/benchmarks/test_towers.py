"""The towers that are timed are what their names say."""

import sys

import pytest
import torch
from torch.nn import functional as F

from benchmarks.speed import rivals
from benchmarks.speed.contenders import cpu_contenders
from benchmarks.speed.ft_transformer import (
    FTTransformer,
    FusedFTTransformer,
    OneDNNLinear,
    attention_by_products,
)
from benchmarks.speed.rivals import MLPTower, mamba_layer_parameters
from benchmarks.speed.towers_under_test import own_tower
from modeling_ftmamba.mixers import MambaMixer

OPTIONAL = ("deeptab", "mambapy")


def test_our_tower_is_the_models_layers_and_norm():
    tower = own_tower("mamba", 16, n_layers=3, state_size=4).eval()
    tokens_BLD = torch.randn(5, 7, 16)
    hidden_BLD = tokens_BLD
    for layer in tower.model.layers:
        hidden_BLD = layer(hidden_BLD)
    torch.testing.assert_close(tower(tokens_BLD), tower.model.norm(hidden_BLD[:, -1]))


@pytest.mark.parametrize("mixer", ["mamba", "attention"])
def test_our_tower_computes_the_last_layer_at_the_last_token_alone(mixer, monkeypatch):
    tower = own_tower(mixer, 32, n_layers=2, state_size=4)
    asked = []
    for layer in tower.model.layers:
        last = layer.forward_last
        monkeypatch.setattr(
            layer, "forward_last", lambda *inputs, last=last: asked.append(1) or last(*inputs)
        )
    tower(torch.randn(2, 3, 32))
    assert asked == [1]


@pytest.mark.parametrize("linear", [torch.nn.Linear, OneDNNLinear])
def test_the_ft_transformers_last_layer_equals_the_whole_one(linear):
    tower = FTTransformer(32, n_layers=2, n_heads=2, linear=linear)
    tokens_BLD = torch.randn(3, 6, 32)
    hidden_BLD = tower.last(tower.layers[0](tokens_BLD))
    torch.testing.assert_close(tower(tokens_BLD), tower.norm(hidden_BLD[:, -1]))


def test_attention_by_products_equals_sdpa():
    query, key, value = (torch.randn(2, 3, length, 8) for length in (1, 6, 6))
    torch.testing.assert_close(
        attention_by_products(query, key, value),
        F.scaled_dot_product_attention(query, key, value),
    )


def test_the_fused_encoder_layer_gives_the_same_with_and_without_gradients():
    tower = FusedFTTransformer(64, n_layers=3, n_heads=2)
    tokens_BLD = torch.randn(4, 9, 64)
    trained_BD = tower.train()(tokens_BLD)
    with torch.no_grad():
        torch.testing.assert_close(tower.eval()(tokens_BLD), trained_BD.detach())


@pytest.mark.parametrize("size", [64, 192])
def test_rivals_have_like_numbers_of_parameters(size):
    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    ours = own_tower("mamba", size, n_layers=4, state_size=16)
    mixers = [module for module in ours.modules() if isinstance(module, MambaMixer)]
    assert {count(mixer) for mixer in mixers} == {mamba_layer_parameters(size, 16)}
    mlp = MLPTower(size, n_layers=4, state_size=16)
    assert count(mlp) == pytest.approx(count(ours), rel=0.02)
    transformer = FTTransformer(size, n_layers=4, n_heads=2)
    fused = FusedFTTransformer(size, n_layers=4, n_heads=2)
    assert count(fused) == pytest.approx(count(transformer), rel=0.02)


@pytest.mark.parametrize("name", ["deeptab", "mamba_ssm"])
def test_a_rival_that_is_not_installed_says_how_to_get_it(name, monkeypatch):
    monkeypatch.setattr(rivals, "find_spec", lambda _: None)
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "deeptab", raising=False)
    with pytest.raises(ImportError, match=rf"{name} is not installed here.*pip install"):
        getattr(rivals, f"{name}_mamba")(64, n_layers=1, state_size=16)


def test_tensor_names_tell_the_truth(checked_shapes):
    with checked_shapes("benchmarks.speed"):
        for name in ("mamba", "ftt 32 onednn", "ftt 32 products", "mlp"):
            tower = cpu_contenders()[name].build(64, 2)
            tower(torch.randn(3, 5, 64, requires_grad=True)).sum().backward()
