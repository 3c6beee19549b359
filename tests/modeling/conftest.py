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


def make_config(**architecture):
    sizes = {"hidden_size": 16, "state_size": 4, "projection_size": 8, "head_hidden_size": 12}
    return FTMambaConfig.from_columns(COLUMNS, COLUMNS[::-1], **(sizes | architecture))


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
