"""Laws of the two-tower model."""

import accelerate
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, Trainer, TrainingArguments

from modeling_ftmamba import FTMambaTowerModel, FTMambaTwoTowerModel
from modeling_ftmamba.pipeline_ftmamba import FTMambaRecommendationPipeline
from modeling_ftmamba.processing_ftmamba import FTMambaFeatureExtractor

from .conftest import COLUMNS, HISTORY, make_batch, make_config, make_tensors, shake

VARIANTS = [
    {},
    {"mixer": "attention"},
    {"mixer": "attention", "first_layer_norm": False, "norm_position": "post"},
    {"bidirectional": True},
    {"bidirectional": True, "pooling": "last"},
    {"pooling": "mean"},
    {"pooling": "last", "numeric_embedding": "ple"},
    {"num_hidden_layers": 0, "pooling": "mean", "numeric_embedding": "periodic"},
    {"norm_position": "post", "normalize_embeddings": True, "num_hidden_layers": 1},
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_equals_its_records_one_by_one(build, variant):
    model = build(**variant).double()
    tensors = make_tensors(4, "user_", dtype=torch.float64)
    together = model.get_user_embeddings(**tensors)
    for row in range(4):
        alone = model.get_user_embeddings(**{k: v[row : row + 1] for k, v in tensors.items()})
        torch.testing.assert_close(alone[0], together[row], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_column_moves_the_embedding(build, variant):
    model = build(**variant).double()
    tensors = make_tensors(1, "user_", dtype=torch.float64)
    before = model.get_user_embeddings(**tensors)
    n_moves = 0
    for name, tensor in tensors.items():
        for slot in range(tensor.shape[1]):
            changed = tensor.clone()
            ids = not tensor.is_floating_point()
            changed[0, slot] = (4 if tensor[0, slot] == 3 else 3) if ids else tensor[0, slot] + 1
            after = model.get_user_embeddings(**(tensors | {name: changed}))
            assert (after - before).abs().max() > 1e-7, (name, slot)
            n_moves += 1
    assert n_moves == 2 + 2 + 3 + 11


@pytest.mark.parametrize("variant", VARIANTS)
def test_saving_and_loading_is_bitwise(build, variant, tmp_path):
    model = build(**variant)
    model.save_pretrained(tmp_path)
    loaded = FTMambaTwoTowerModel.from_pretrained(tmp_path)
    assert not loaded.training
    batch = make_batch()
    assert torch.equal(loaded(**batch).scores, model(**batch).scores)
    state = loaded.state_dict()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_tracing_is_refused_with_what_to_do_and_exporting_works(build):
    model, batch = build(), make_batch()
    with pytest.raises(ValueError, match=r"jit\.trace would fix .* use torch\.export\.export"):
        torch.jit.trace(model, example_kwarg_inputs=batch, strict=False)
    exported = torch.export.export(model, (), batch).module()
    torch.testing.assert_close(exported(**batch).scores, model(**batch).scores)


def test_offloaded_weights_are_refused_with_what_to_do(build, tmp_path):
    model = build(user_columns=[*COLUMNS, HISTORY], pooling="last")
    model.save_pretrained(tmp_path / "saved")
    users = {name: x for name, x in make_batch().items() if name.startswith("user")}
    offloaded = [
        accelerate.cpu_offload(model, execution_device="cpu"),
        FTMambaTwoTowerModel.from_pretrained(
            tmp_path / "saved", device_map={"": "disk"}, offload_folder=tmp_path / "disk"
        ),
    ]
    for one in offloaded:
        with pytest.raises(ValueError, match=r"weights are not in memory.* load all of it"):
            one.get_user_embeddings(**users)
        with pytest.raises(ValueError, match=r"weights are not in memory.* load all of it"):
            FTMambaRecommendationPipeline(one, FTMambaFeatureExtractor())


def test_nothing_outside_the_checkpoint_is_needed(build):
    model = build(numeric_embedding="ple")
    names = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}
    assert names == set(model.state_dict())


def test_scores_and_loss_by_their_definition(build):
    model = build(temperature=0.25)
    batch, labels = make_batch(3, 5), torch.tensor([4, 0, 2])
    output = model(**batch, labels=labels)
    users = model.get_user_embeddings(**{k: v for k, v in batch.items() if k[:4] == "user"})
    items = model.get_item_embeddings(**{k: v for k, v in batch.items() if k[:4] == "item"})
    assert model.temperature.item() != 1
    scores = users @ items.T / model.log_temperature.exp()
    torch.testing.assert_close(output.scores, scores)
    torch.testing.assert_close(output.loss, F.cross_entropy(scores, labels))
    assert model(**batch).loss is None


def test_one_tower_alone_saves_and_loads(tmp_path):
    tower = shake(FTMambaTowerModel(make_config().tower("user"))).eval()
    tower.save_pretrained(tmp_path)
    loaded = FTMambaTowerModel.from_pretrained(tmp_path)
    tensors = make_tensors(3)
    assert torch.equal(loaded(**tensors).embeds, tower(**tensors).embeds)


def test_the_reverse_direction_is_heard_with_one_layer(build):
    model = build(bidirectional=True, num_hidden_layers=1).double()
    tensors = make_tensors(2, "user_", dtype=torch.float64)
    loss = model.get_user_embeddings(**tensors).square().sum()
    loss.backward()
    reverse = model.user_tower.layers[0].reverse_mixer
    assert all(parameter.grad.abs().max() > 1e-9 for parameter in reverse.parameters())


@pytest.mark.parametrize("mixer", ["mamba", "attention"])
def test_gradient_checkpointing_changes_memory_and_no_gradient(build, mixer):
    gradients = []
    for checkpointing in (False, True):
        model = build(mixer=mixer, num_hidden_layers=3).double().train()
        if checkpointing:
            # Transformers 5.23 gave the method a new name.
            old, new = "gradient_checkpointing_enable", "activation_checkpointing_enable"
            getattr(model, new if hasattr(model, new) else old)()
        layers = [*model.user_tower.layers, *model.item_tower.layers]
        assert all(layer.gradient_checkpointing == checkpointing for layer in layers)
        model(**make_batch(dtype=torch.float64)).scores.square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("variant", [{}, {"mixer": "attention"}, {"numeric_embedding": "ple"}])
def test_bfloat16_stays_near_float32(build, variant):
    model = build(**variant)
    batch = make_batch()
    exact = model(**batch).scores
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(**batch).scores.float()
    half = model.bfloat16()(**batch).scores
    assert half.dtype is torch.bfloat16
    scale = exact.abs().max()
    assert (mixed - exact).abs().max() < 0.05 * scale
    assert (half.float() - exact).abs().max() < 0.05 * scale


def test_what_transformers_trains_is_saved_loaded_and_used(build, tmp_path):
    """Trainer writes `training_args.bin`, a pickle, beside the weights; nothing ever reads it."""
    model, batch = build(), make_batch(5, 7)
    labels, before = torch.tensor([3, 0, 6, 2, 2]), model(**batch).scores
    items = {name: tensor for name, tensor in batch.items() if name.startswith("item_")}
    users = {name: tensor for name, tensor in batch.items() if name.startswith("user_")}
    rows = [
        {**{name: tensor[row] for name, tensor in users.items()}, "labels": labels[row]}
        for row in range(5)
    ]

    def collate(some):
        return items | {name: torch.stack([row[name] for row in some]) for name in some[0]}

    arguments = TrainingArguments(
        tmp_path / "run", max_steps=20, per_device_train_batch_size=5, learning_rate=0.01,
        report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collate)
    losses = [model.eval()(**batch, labels=labels).loss.item()]
    trainer.train()
    losses.append(model.eval()(**batch, labels=labels).loss.item())
    assert losses[1] < 0.7 * losses[0]
    trainer.save_model(tmp_path / "saved")
    (tmp_path / "saved" / "training_args.bin").write_bytes(b"not even a pickle")
    loaded = AutoModel.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    assert type(loaded).__name__ == "FTMambaTwoTowerModel"
    scores = loaded(**batch).scores
    assert torch.equal(scores, model(**batch).scores)
    assert (scores - before).abs().max() > 1e-3


@pytest.mark.parametrize("variant", [*VARIANTS, {"mixer": "ssd"}])
def test_a_model_made_without_memory_is_initialised_as_one_made_with_it(variant):
    """What `_init_weights` forgets would stay as the memory was."""
    config = make_config(**variant, learn_temperature=True, temperature=0.5)
    torch.manual_seed(0)
    plain = FTMambaTwoTowerModel(config)
    with torch.device("meta"):
        late = FTMambaTwoTowerModel(config)
    late.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in late.state_dict().values():
            tensor.fill_(torch.nan if tensor.is_floating_point() else -1)
    for module in late.modules():
        module._is_hf_initialized = False
    for parameter in late.parameters():
        parameter._is_hf_initialized = False
    late.init_weights()
    for name, value in late.state_dict().items():
        expected = plain.state_dict()[name]
        assert not value.isnan().any(), name
        assert value.shape == expected.shape
        assert torch.equal(value == 0, expected == 0), name


SHAPES = [
    {},
    {"mixer": "attention"},
    {"bidirectional": True},
    {"mixer": "ssd"},
    {"mixer": "ssd", "bidirectional": True, "ssd_head_size": 4},
    {"pooling": "mean", "numeric_embedding": "periodic"},
    {"numeric_embedding": "ple", "norm_position": "post"},
]


@pytest.mark.parametrize("variant", SHAPES)
def test_every_suffix_is_the_shape(build, checked_shapes, variant):
    model = build(**variant).train()
    with checked_shapes("modeling_ftmamba"):
        model(**make_batch()).scores.sum().backward()


def test_a_lying_suffix_is_noticed(checked_shapes):
    def lie():
        x_AB = torch.zeros(3)
        return x_AB

    with pytest.raises(AssertionError, match="x_AB has shape"), checked_shapes(__name__):
        lie()
