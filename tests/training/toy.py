"""A small checkerboard as encoded data, and a small model for it."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from accelerate import Accelerator

from ftmamba.data.arrow_files import write_arrays
from ftmamba.data.encoded import EncodedData
from ftmamba.data.interactions import Interactions
from ftmamba.data.popularity import PopularityHistory
from ftmamba.recipe import TrainingRecipe, build, upgraded
from ftmamba.training.feed import Batch, Objective
from ftmamba.training.loop import TrainingLoop
from modeling_ftmamba.configuration_ftmamba import FTMambaConfig
from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel

N_USERS, N_ITEMS = 16, 20
DAY = 86_400
OBJECTIVES = {
    "in_batch": {"loss": "in_batch"},
    "full_softmax": {"loss": "full_softmax", "user_weight_exponent": 0.5},
    "sampled": {"loss": "full_softmax", "n_sampled_items": 3},
    "full_mse": {"loss": "full_mse"},
    "bce": {"loss": "bce"},
}
"""Options of the objectives whose gradients are compared over ranks."""


def checkerboard():
    """User u takes every item of its own parity but item u; the pairs in a scrambled order."""
    user_ids, item_ids = np.meshgrid(np.arange(N_USERS), np.arange(N_ITEMS), indexing="ij")
    taken = ((user_ids + item_ids) % 2 == 0) & (user_ids != item_ids)
    order = np.random.default_rng(0).permutation(taken.sum())
    times = np.arange(len(order), dtype=np.int64) * DAY // 4
    return Interactions(
        user_ids[taken][order], item_ids[taken][order], times, None, N_USERS, N_ITEMS
    )


def encoded(folder: Path, *, with_popularity: bool = False) -> EncodedData:
    """Encode the checkerboard: an id and a number a user, an id and a number an item."""
    train = checkerboard()
    history = PopularityHistory(train) if with_popularity else None
    arrays = {"user_ids": train.user_ids, "item_ids": train.item_ids, "times": train.times}
    if history is not None:
        arrays["popularity"] = history.columns(train.item_ids, train.times, [7])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"interactions-{with_popularity}.arrow"
    if not path.exists():
        write_arrays(path, arrays)
    popularity = [{"name": "popularity", "kind": "numeric", "popularity_days": 7}]
    extractor = SimpleNamespace(
        user_columns=_columns("user", N_USERS),
        item_columns=_columns("item", N_ITEMS) + popularity * with_popularity,
        encode_numeric=lambda *arguments: arguments[-1].astype(np.float32),
    )
    return EncodedData(
        extractor=extractor,
        users=_tensors(N_USERS, 1),
        items=_tensors(N_ITEMS, 1 + with_popularity),
        interactions=path,
        popularity_slots=(1,) * with_popularity,
        popularity_names=("popularity",) * with_popularity,
        popularity_days=(7,) * with_popularity,
        popularity_history=history,
        item_counts=np.bincount(train.item_ids, minlength=N_ITEMS),
        as_of=int(train.times.max()) + 1,
        n_users=N_USERS,
    )


def model(data: EncodedData, **fields) -> FTMambaTwoTowerModel:
    """Build a one-layer model with seeded weights."""
    torch.manual_seed(3)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4, "projection_size": 16}
    return FTMambaTwoTowerModel(
        FTMambaConfig.from_columns(
            data.extractor.user_columns,
            data.extractor.item_columns,
            **{**small, "temperature": 0.5, "learn_temperature": True, **fields},
        )
    )


def training_recipe(**options) -> TrainingRecipe:
    """Build the training section."""
    return build(TrainingRecipe, upgraded({"training": options})["training"])


def gradients(
    data: EncodedData, name: str, *, batch_size: int, accelerator: Accelerator, folder: Path
) -> dict[str, torch.Tensor]:
    """Return the gradient of the first batch's loss, as the training loop computes it."""
    recipe = training_recipe(batch_size=batch_size, mask_known_positives=True, **OBJECTIVES[name])
    loop = TrainingLoop(model(data), data, recipe, accelerator, folder=folder, seed=5)
    loss_value = loss_of(loop.objective, next(iter(loop.batches.epoch(0))))
    accelerator.backward(loss_value)
    found = {name: p.grad.clone() for name, p in loop.base.named_parameters()}
    found["loss"] = accelerator.reduce(loss_value.detach(), "mean")
    loop.release()
    return found


def loss_of(objective: Objective, batch: Batch, step: int = 0) -> torch.Tensor:
    """Return the loss of a batch, prepared and computed in one go."""
    return objective(objective.prepare(batch, step))


def _columns(tower: str, n: int) -> list[dict]:
    return [
        {"name": f"{tower}_id", "kind": "categorical", "vocabulary_size": 3 + n},
        {"name": f"{tower}_number", "kind": "numeric"},
    ]


def _tensors(n: int, n_numeric: int) -> dict[str, torch.Tensor]:
    numeric = torch.randn(n, n_numeric, generator=torch.Generator().manual_seed(n))
    numeric[:, 1:] = torch.nan
    return {"numeric": numeric, "category_ids": 3 + torch.arange(n)[:, None]}
