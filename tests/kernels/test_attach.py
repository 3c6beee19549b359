"""`attach` gives modules faster forwards of the same values, and everything else stays theirs."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ftmamba.kernels import attach as attach_module
from ftmamba.kernels import elementwise
from ftmamba.kernels import library as library_module
from ftmamba.kernels.attach import attach, implementation
from modeling_ftmamba import FTMambaTowerConfig, FTMambaTowerModel
from modeling_ftmamba.mixers import MixerState, Part

from .conftest import LIBRARY, compare, make_layer, relative_error, tokens, twins

COLUMNS = [{"name": "a", "kind": "numeric"}, {"name": "b", "kind": "numeric"}]
FED = {"mixer_feed_forward": True, "intermediate_size": 40}
LAYERS = {
    "mamba": {},
    "mamba, norm after": {"norm_position": "post", **FED},
    "mamba, norm of the sum": {"norm_position": "sum", "feed_forward": "gelu", **FED},
    "mamba, no residual": {"mixer_residual": False, **FED},
    "both directions": {"bidirectional": True, "feed_forward": "relu", **FED},
    "ssd": {"mixer": "ssd", "feed_forward": "reglu", **FED},
    "ssd, both directions": {"mixer": "ssd", "bidirectional": True},
    "attention": {"mixer": "attention"},
    "causal attention": {"mixer": "attention", "causal_attention": True, "feed_forward": "gelu"},
}


def layer_twins(*, drops=False, **fields):
    if drops:
        fields["residual_dropout"] = 0.3
        if "mixer_feed_forward" in fields or fields.get("mixer") == "attention":
            fields["feed_forward_dropout"] = 0.2
    return twins(hidden_size=32, **fields)


def make_tower(**fields):
    torch.manual_seed(0)
    return FTMambaTowerModel(FTMambaTowerConfig(columns=COLUMNS, hidden_size=32, **fields))


@pytest.fixture
def kernels(monkeypatch):
    """Names of the kernels that ran."""
    ran = []

    def watched(owner, name):
        run = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: ran.append(name) or run(*a, **k))

    for name in ("fused_layer", "carried_layer", "mix_in_row_blocks", "apply_linear"):
        watched(attach_module, name)
    for name in ("dropout", "gelu_dropout", "normalize"):
        watched(elementwise, name)
    monkeypatch.setitem(
        attach_module.SCANS, "cpu", lambda *a: ran.append("cpu_scan") or attach_module.cpu_scan(*a)
    )
    return ran


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_equals_its_plain_definition_in_float64(name, kernels):
    layer, exact = layer_twins(drops=True, **LAYERS[name])
    compare(layer.eval(), exact.eval(), tokens(40, 11, 32), type(layer).__call__, 3e-6, 3e-5)
    assert kernels
    if not LAYERS[name].get("bidirectional"):
        with torch.no_grad():
            got, expected = (
                one.forward_last(x)
                for one, x in ((layer, tokens(40, 11, 32)), (exact, tokens(40, 11, 32).double()))
            )
        assert relative_error(got, expected) < 3e-6


@pytest.mark.parametrize("name", LAYERS)
def test_in_training_numbers_are_dropped_at_the_rates_by_kernels(name, kernels):
    layer, _ = layer_twins(drops=True, **LAYERS[name])
    x = tokens(40, 11, 32).requires_grad_()
    torch.manual_seed(1)
    out = layer.train()(x)
    torch.manual_seed(1)
    assert torch.equal(layer(x), out)
    assert not torch.equal(layer(x), out)
    assert not torch.equal(layer.eval()(x), out)
    out.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())
    fused = "fused_layer" in kernels and "feed_forward" not in name
    assert fused or {"dropout", "gelu_dropout"} & set(kernels)


def test_in_training_towers_normalise_and_drop_tokens_by_kernels(kernels):
    tower = make_tower(normalize_embeddings=True, token_dropout=0.2)
    numeric = torch.randn(6, 2)
    embeds = tower.train()(numeric=numeric).embeds
    assert {"normalize", "dropout"} <= set(kernels)
    torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(6))
    kernels.clear()
    with torch.no_grad():
        embeds = tower.eval()(numeric=numeric).embeds
    assert not {"normalize", "dropout"} & set(kernels)
    torch.testing.assert_close(embeds, F.normalize(embeds, dim=-1))


def test_dropout_without_the_kernel_is_torchs(kernels):
    drop = make_layer(residual_dropout=0.3).dropout.train()
    for x in (torch.ones(8, dtype=torch.float64), torch.ones(8, device="meta")):
        drop(x)
    drop.p = 1.0
    assert drop(torch.ones(8)).eq(0).all()
    assert drop.eval()(torch.ones(8)).eq(1).all()
    assert not kernels
    drop.p = 0.5
    assert drop.train()(torch.ones(8).bfloat16()).dtype is torch.float32
    assert kernels == ["dropout"]


def test_gaps_keep_the_fused_layer_only_where_no_one_reads_them(kernels):
    layer, exact = layer_twins()
    x, gaps = tokens(4, 7, 32), torch.ones(4, 7)
    layer(x, gaps)
    assert kernels == ["fused_layer"]
    for one in (layer, exact):
        one.mixer.gap_weight = nn.Parameter(torch.full((64,), 0.1, dtype=one.mixer.D.dtype))
    layer(x)
    assert kernels == ["fused_layer"] * 2
    compare(layer, exact, x, lambda one, x: one(x, gaps.to(x.dtype)))
    assert kernels[2:] == ["cpu_scan"]
    last = layer.forward_last(x, gaps)
    torch.testing.assert_close(last, layer(x, gaps)[:, -1], rtol=1e-5, atol=1e-6)


def test_with_gradients_dropout_or_ragged_rows_streaming_is_not_fused(kernels):
    layer, exact = layer_twins(residual_dropout=0.1)
    x = tokens(2, 3, 32)
    state = MixerState(torch.zeros(2, 64, 3), torch.zeros(2, 64, 16))
    layer.eval().advance(x, state, Part())
    with torch.no_grad():
        layer.train().advance(x, state, Part())
        ragged = Part(torch.tensor([1, 3]))
        got = layer.eval().advance(x, state, ragged)[1]
        expected = exact.eval().advance(
            x.double(), MixerState(*(one.double() for one in state)), ragged
        )[1]
        assert "carried_layer" not in kernels
        layer.advance(x, state, Part())
    assert kernels[-1] == "carried_layer"
    for a, b in zip(got, expected, strict=True):
        assert relative_error(a, b) < 2e-6


@pytest.mark.parametrize("mixer", ["mamba", "ssd"])
@pytest.mark.parametrize("part", ["in_proj", "conv1d", "out_proj"])
def test_an_adapter_or_a_hook_in_a_mixer_is_run(mixer, part, kernels):
    fields = {"ssd_head_size": 8} if mixer == "ssd" else {}
    layer = make_layer(mixer=mixer, hidden_size=16, state_size=4, **fields)
    x, seen = tokens(2, 5, 16), []
    plain = layer(x)
    linear = getattr(layer.mixer, part)
    handle = linear.register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(layer(x), plain, rtol=1e-4, atol=1e-5)
    assert seen
    handle.remove()
    linear.forward = lambda x, run=linear.forward: 2 * run(x)
    assert not torch.allclose(layer(x), plain, atol=1e-3)
    del linear.forward
    setattr(layer.mixer, part, nn.Sequential(linear, nn.Tanh()))
    if part != "conv1d":
        assert not torch.allclose(layer(x), plain, atol=1e-3)


@pytest.mark.parametrize("part", ["mixer_norm", "dropout"])
def test_an_adapter_or_a_hook_beside_the_mixer_is_run(part):
    layer, seen = make_layer(hidden_size=16, state_size=4, residual_dropout=0.2), []
    getattr(layer, part).register_forward_hook(lambda *_: seen.append(1))
    layer(tokens(2, 5, 16))
    assert seen


def test_auto_is_the_kernel_for_float32_and_plain_for_float64_and_other_devices():
    mixer = make_layer().mixer
    assert implementation(mixer, torch.zeros(1)) == "cpu"
    assert implementation(mixer, torch.zeros(1, dtype=torch.float64)) == "sequential"
    assert implementation(mixer, torch.zeros(1, device="meta")) == "sequential"


def test_a_scan_is_chosen_named_and_taken_back(kernels):
    tower = make_tower()
    numeric = torch.randn(6, 2)
    results = {}
    for name in ("auto", "sequential", "reference", "cpu", "auto"):
        tower.set_scan(name)
        assert tower.scan_implementation == {"auto": "cpu"}.get(name, name)
        kernels.clear()
        results[name] = tower(numeric=numeric).embeds
        assert bool(kernels) == (name in ("auto", "cpu"))
        assert ("forward" in vars(tower.layers[0])) == (name in ("auto", "cpu"))
    for result in results.values():
        torch.testing.assert_close(result, results["reference"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mixer", ["ssd", "attention"])
def test_a_scan_without_effect_is_refused(mixer):
    tower = make_tower(mixer=mixer)
    assert tower.scan_implementation == "none"
    for name in ("reference", "cpu", "triton"):
        with pytest.raises(ValueError, match=f"scan '{name}' has no effect here"):
            tower.set_scan(name)
    tower.set_scan("sequential")
    assert "forward" not in vars(tower.layers[0])
    tower.set_scan("auto")


def test_an_unknown_scan_and_one_that_cannot_run_leave_the_choice(use):
    tower = make_tower()
    with pytest.raises(ValueError, match=r"scan must be one of auto, .*, got 'sequentail'"):
        tower.set_scan("sequentail")
    if attach_module.missing("triton"):
        with pytest.raises(RuntimeError, match=r"the triton scan cannot run here: .*install"):
            tower.set_scan("triton")
    assert tower.scan_implementation == "cpu"
    use("no compiler; install gcc")
    with pytest.raises(RuntimeError, match="the cpu scan cannot run here: no compiler"):
        tower.set_scan("cpu")
    tower.set_scan("auto")
    assert tower.scan_implementation == "sequential"
    tower(numeric=torch.zeros(1, 2))


def test_triton_is_not_imported_where_there_is_no_gpu(monkeypatch):
    asked, missing = [], attach_module.missing
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with monkeypatch.context() as patch:
        patch.setattr(attach_module, "missing", lambda name: asked.append(name) or missing(name))
        make_layer()
    assert set(asked) == {"cpu"}


def test_layers_of_another_contract_stay_plain():
    layer = make_layer("sequential")
    layer.kernel_contract = attach_module.CONTRACT + 1
    attach(layer, "auto")
    assert "forward" not in vars(layer)


def test_copies_run_on_their_own_parameters_and_pickled_ones_in_plain_torch():
    tower = make_tower()
    numeric = torch.randn(6, 2)
    before = tower(numeric=numeric).embeds
    twin = copy.deepcopy(tower)
    with torch.no_grad():
        twin.layers[0].mixer.in_proj.weight.zero_()
    assert twin.layers[0].forward.__self__ is twin.layers[0]
    assert not torch.equal(twin(numeric=numeric).embeds, before)
    assert torch.equal(tower(numeric=numeric).embeds, before)
    pickled = pickle.loads(pickle.dumps(tower))
    torch.testing.assert_close(pickled(numeric=numeric).embeds, before, rtol=1e-5, atol=1e-6)


def test_names_of_weights_and_wrappers_are_as_without_kernels():
    tower, plain = make_tower(), make_tower()
    plain.set_scan("sequential")
    assert list(tower.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in tower.named_modules()] == [
        name for name, _ in plain.named_modules()
    ]
    tower.activation_checkpointing_enable()
    numeric = torch.randn(6, 2)
    tower.train()(numeric=numeric).embeds.sum().backward()
    plain.train()(numeric=numeric).embeds.sum().backward()
    for one, other in zip(tower.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("mixer", ["mamba", "ssd", "attention"])
def test_a_compiled_tower_is_one_graph_and_gives_the_same_with_gradients(mixer):
    tower = make_tower(mixer=mixer, normalize_embeddings=True)
    numeric, results = torch.randn(6, 2), []
    for run in (tower, torch.compile(tower, fullgraph=True, backend="aot_eager")):
        tower.zero_grad()
        embeds = run(numeric=numeric).embeds
        (embeds * torch.linspace(-1, 2, embeds.numel()).view_as(embeds)).sum().backward()
        results.append([embeds, *(one.grad for one in tower.parameters() if one.requires_grad)])
    for eager, graph in zip(*results, strict=True):
        torch.testing.assert_close(graph, eager, rtol=1e-4, atol=1e-5)


def test_a_library_of_other_sources_is_refused(monkeypatch):
    monkeypatch.setattr(library_module, "CALLS", library_module.CALLS[1:])
    with pytest.raises(OSError, match="built from other sources"):
        library_module.KernelLibrary(LIBRARY)
