"""Users with histories of uneven lengths, and the gradients of their first batch."""

import numpy as np
import pyarrow as pa
import torch
from accelerate import Accelerator

from ftmamba.data.tables import load_tables
from ftmamba.recipe import recipe_from_dict
from ftmamba.training.loop import TrainingLoop
from ftmamba.training.run import encode_once, make_model, split_tables

N_USERS, N_ITEMS = 40, 30
SCHEMA = {
    "users": {"key": "user_id", "columns": {"history": {"kind": "history", "max_length": 20}}},
    "items": {"key": "item_id", "columns": {"item_id": "categorical"}},
    "interactions": {"user": "user_id", "item": "item_id"},
}
LOSSES = {
    "full_softmax": {"loss": {"name": "full_softmax", "mask_history": True}},
    "with repeats": {"loss": {"name": "full_softmax"}, "overrides": {"repeat_bias": True}},
    "in_batch": {"loss": {"name": "in_batch", "mask_known_positives": True}},
    "sampled_softmax": {"loss": {"name": "sampled_softmax", "n_negatives": 8}},
    "bce": {"loss": {"name": "bce"}},
}


def tables_of_uneven_histories():
    """Return tables of users who take from 4 to 22 items."""
    rng = np.random.default_rng(0)
    pairs = [
        (f"u{user}", f"i{item}")
        for user in range(N_USERS)
        for item in rng.integers(N_ITEMS, size=rng.integers(4, 23))
    ]
    users, items = (list(column) for column in zip(*pairs, strict=True))
    return load_tables(
        pa.table({"user_id": [f"u{user}" for user in range(N_USERS)]}),
        pa.table({"item_id": [f"i{item}" for item in range(N_ITEMS)]}),
        pa.table({"user_id": users, "item_id": items}),
        SCHEMA,
    )


def gradients(folder, loss: str, *, batch_size: int, accelerator: Accelerator):
    """Return the gradient of the first batch's loss, as the training loop computes it."""
    small = {"hidden_size": 16, "projection_size": 16, "intermediate_size": 32, "state_size": 4}
    still = {"token_dropout": 0.0, "residual_dropout": 0.0, "feed_forward_dropout": 0.0}
    overrides = {**small, **still, "learn_temperature": True, **LOSSES[loss].get("overrides", {})}
    recipe = recipe_from_dict(
        {
            "data": {"users": "-", "items": "-", "interactions": "-", "cache_dir": str(folder)},
            "split": "leave-last-out",
            "model": {"preset": "ft-mamba-history", "overrides": overrides},
            "training": {
                "sequences": "newest", "loss": LOSSES[loss]["loss"], "batch_size": batch_size,
            },
            "output_dir": str(folder / "run"),
        }
    )  # fmt: skip
    tables = tables_of_uneven_histories()
    split = split_tables(tables, recipe)
    data = encode_once(recipe, tables, split, accelerator)
    loop = TrainingLoop(
        make_model(recipe, data), data, recipe.training, accelerator, folder=folder, seed=5
    )
    batch = next(iter(loop.batches.epoch(0)))
    value = loop.wrapped(loop.objective.prepare(batch, 0))
    accelerator.backward(value)
    found = {name: one.grad.clone() for name, one in loop.base.named_parameters()}
    found["loss"] = accelerator.reduce(value.detach(), "mean")
    found["n_targets"] = torch.tensor(len(batch.targets))
    return found
