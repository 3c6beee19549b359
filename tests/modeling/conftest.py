"""A schema with every kind of column, and batches that fit it."""

import pytest
import torch

from modeling_ftmamba import FTMambaConfig, FTMambaTwoTowerModel

COLUMNS = [
    {"name": "age", "kind": "numeric", "edges": [-1.5, -0.5, 0.25, 2.0]},
    {"name": "job", "kind": "categorical", "vocabulary_size": 9},
    {"name": "height", "kind": "numeric"},
    {"name": "genres", "kind": "categories", "vocabulary_size": 7, "max_length": 3},
    {"name": "joined", "kind": "timestamp", "dimension": 7},
    {"name": "city", "kind": "categorical", "vocabulary_size": 5},
    {"name": "text", "kind": "vector", "dimension": 4},
]


def make_tensors(n_rows, prefix="", seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    job = torch.randint(3, 9, (n_rows, 1), generator=generator)
    city = torch.randint(3, 5, (n_rows, 1), generator=generator)
    sets = torch.randint(3, 7, (n_rows, 3), generator=generator)
    sets[:, 2] = 0
    tensors = {
        "numeric": torch.randn(n_rows, 2, generator=generator, dtype=dtype),
        "category_ids": torch.cat([job, city], 1),
        "set_ids": sets,
        "dense": torch.randn(n_rows, 11, generator=generator, dtype=dtype),
    }
    return {prefix + name: tensor for name, tensor in tensors.items()}


HISTORY = {
    "name": "history", "kind": "history", "max_length": 20, "event_features": ["gap", "weight"],
}  # fmt: skip


def make_events(lengths, size=8, seed=0, dtype=torch.float32, max_length=None):
    """Return a history of random items, with a feature that is missing here and there."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths) if max_length is None else max_length)
    features = torch.randn(*shape, 2, generator=generator, dtype=dtype)
    features[..., 0] = features[..., 0].abs()
    missing = torch.rand(*shape, 2, generator=generator) < 0.2
    return {
        "user_history": torch.randn(*shape, size, generator=generator, dtype=dtype),
        "user_history_lengths": torch.tensor(lengths),
        "user_event_features": features.masked_fill(missing, torch.nan),
    }


def make_config(*, user_columns=COLUMNS, item_columns=COLUMNS[::-1], **architecture):
    sizes = {"hidden_size": 16, "projection_size": 8}
    if architecture.get("mixer") != "attention" and architecture.get("num_hidden_layers") != 0:
        sizes["state_size"] = 4
    if architecture.get("with_head", True):
        sizes["head_hidden_size"] = 12
    return FTMambaConfig.from_columns(user_columns, item_columns, **(sizes | architecture))


def make_batch(n_users=5, n_items=7, seed=0, dtype=torch.float32):
    users = make_tensors(n_users, "user_", seed, dtype)
    return users | make_tensors(n_items, "item_", seed + 1, dtype)


def shake(model, seed=0):
    """Move every parameter off its initial value, so that zeros and ones hide nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(noise.to(parameter.dtype), alpha=0.1)
    return model


@pytest.fixture
def build():
    def make(**architecture):
        torch.manual_seed(0)
        return shake(FTMambaTwoTowerModel(make_config(**architecture))).eval()

    return make
