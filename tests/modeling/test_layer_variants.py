"""Layers as options make them: where norms, sums and feed-forwards stand, and how weights start."""

import pytest
import torch
from modeling_ftmamba.scans import scan_named
from torch import nn
from torch.nn import functional as F

from modeling_ftmamba import FTMambaConfig, FTMambaTowerConfig, FTMambaTowerModel
from modeling_ftmamba.network import FTMambaLayer

from .conftest import COLUMNS, shake

FED = {"mixer_feed_forward": True, "feed_forward": "gelu", "intermediate_size": 40}


def make_layer(scan="sequential", **fields):
    torch.manual_seed(0)
    config = FTMambaTowerConfig(columns=[], hidden_size=16, state_size=4, **fields)
    layer = FTMambaLayer(config, 1, scan_named(scan))
    if hasattr(layer.mixer, "reset_parameters"):
        layer.mixer.reset_parameters()
    return shake(layer.double()).eval()


def hidden(length=7, dtype=torch.float64):
    return torch.randn(3, length, 16, generator=torch.Generator().manual_seed(1)).to(dtype)


def assert_near(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def mamba4rec_layer(layer, x, *, residual):
    """One layer as the code of Mamba4Rec reads: MambaLayer, then FeedForward."""
    mixed = layer.mixer(x)
    x = layer.mixer_norm(mixed + x if residual else mixed)
    up, down, norm = layer.feed_forward.up, layer.feed_forward.down, layer.feed_forward_norm
    return norm(down(F.gelu(up(x))) + x)


@pytest.mark.parametrize("residual", [True, False])
def test_sum_is_the_layer_of_mamba4rec(residual):
    layer = make_layer(norm_position="sum", mixer_residual=residual, **FED)
    assert_near(layer(hidden()), mamba4rec_layer(layer, hidden(), residual=residual))


def test_without_a_residual_the_mixer_takes_the_place_of_its_input():
    x = hidden()
    before = make_layer(mixer_residual=False)
    assert_near(before(x), before.mixer(before.mixer_norm(x)))
    after = make_layer(mixer_residual=False, norm_position="post")
    assert_near(after(x), after.mixer_norm(after.mixer(x)))


@pytest.mark.parametrize("norm_position", ["pre", "post", "sum"])
@pytest.mark.parametrize("mixer", ["mamba", "ssd"])
def test_a_feed_forward_follows_the_mixer_and_the_last_token_alone_is_the_same(
    mixer, norm_position
):
    layer = make_layer(mixer=mixer, norm_position=norm_position, **FED)
    bare = make_layer(mixer=mixer, norm_position=norm_position)
    bare.load_state_dict(layer.state_dict(), strict=False)
    norm, feed = layer.feed_forward_norm, layer.feed_forward
    x = bare(hidden())
    fed = {
        "pre": lambda: x + feed(norm(x)),
        "post": lambda: x + norm(feed(x)),
        "sum": lambda: norm(x + feed(x)),
    }
    assert_near(layer(hidden()), fed[norm_position]())
    assert_near(layer.forward_last(hidden()), layer(hidden())[:, -1])


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("norm_position", ["pre", "sum"])
def test_the_compiled_layer_is_used_where_it_computes_the_same(norm_position, residual):
    fields = {"norm_position": norm_position, "mixer_residual": residual, **FED}
    exact = make_layer(**fields)
    fast = make_layer("cpu", **fields).float()
    x = hidden(dtype=torch.float32)
    assert (fast._fused(x, last=False) is not None) == (norm_position == "pre")
    assert fast.mixer.fused(x) is not None
    for run in (FTMambaLayer.forward, FTMambaLayer.forward_last):
        expected = run(exact, x.double())
        assert (run(fast, x) - expected).abs().max() < 2e-6 * expected.abs().max()


def test_gaps_that_nobody_reads_keep_the_compiled_layer():
    fast = make_layer("cpu").float()
    x, gaps = hidden(dtype=torch.float32), torch.ones(3, 7)
    assert fast._fused(x, gaps, last=False) is not None
    decaying = make_layer("cpu").float()
    decaying.mixer.gap_weight = nn.Parameter(torch.ones(32))
    assert decaying._fused(x, gaps, last=False) is None
    assert decaying._fused(x, last=False) is not None
    assert (decaying(x, gaps) - decaying(x)).abs().max() > 1e-4


def test_causal_attention_never_looks_ahead():
    layer = make_layer(mixer="attention", causal_attention=True)
    x, changed = hidden(), hidden()
    changed[:, 4] = changed[:, 4].flip(-1)
    moved = (layer(x) - layer(changed)).abs().amax((0, 2))
    assert (moved[:4] == 0).all()
    assert (moved[4:] > 1e-9).all()
    assert_near(layer.forward_last(x), layer(x)[:, -1])
    assert_near(layer(x)[:, 2], layer.forward_last(x[:, :3]))


def test_the_head_norm_and_bias_can_be_left_out():
    config = FTMambaConfig.from_columns(
        [], [COLUMNS[1]], num_hidden_layers=0, pooling="mean", hidden_size=8, projection_size=8,
        final_norm=False, with_head=False, category_bias=False,
    )  # fmt: skip
    tower = FTMambaTowerModel(config.tower("item"))
    ids = torch.tensor([[4], [8]])
    table = tower.tokenizer.kinds["category_ids"].table.weight
    assert torch.equal(tower(category_ids=ids).embeds, table[ids[:, 0]])
    assert [name for name, _ in tower.named_parameters()] == [
        "tokenizer.kinds.category_ids.table.weight"
    ]


def test_token_norm_comes_after_token_dropout():
    config = FTMambaTowerConfig(columns=[COLUMNS[1]], token_norm=True, token_dropout=0.5)
    tokenizer = shake(FTMambaTowerModel(config)).train().tokenizer
    tokens = {"category_ids": torch.tensor([[4], [8]])}
    torch.manual_seed(3)
    out = tokenizer(tokens, 2)
    torch.manual_seed(3)
    norm, tokenizer.norm = tokenizer.norm, None
    plain = tokenizer(tokens, 2)
    assert (plain == 0).any()
    torch.testing.assert_close(out, norm(plain))


def test_weights_start_normal_and_biases_at_zero_but_for_the_steps():
    torch.manual_seed(0)
    config = FTMambaTowerConfig(
        columns=[COLUMNS[1]], initializer_range=0.02, hidden_size=64, **FED, time_step_max=0.1
    )
    model = FTMambaTowerModel(config)
    layer, table = model.layers[0], model.tokenizer.kinds["category_ids"].table.weight
    for weight in (layer.mixer.in_proj.weight, layer.feed_forward.up.weight, table[3:]):
        assert 0.015 < weight.std() < 0.025
        assert weight.abs().max() > 0.04
    assert (table[:3] == 0).all()
    assert 0.01 < layer.mixer.dt_proj.weight.std() < 0.03
    assert (layer.feed_forward.up.bias == 0).all()
    assert (model.tokenizer.kinds["category_ids"].bias == 0).all()
    steps = F.softplus(layer.mixer.dt_proj.bias)
    assert steps.max() < 0.1001
    assert 0.015 < model.tokenizer.cls.std() < 0.025
