"""A small checkerboard as encoded data, and a small model for it."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import torch
from accelerate import Accelerator

from ftmamba.data.arrow_files import write_arrays
from ftmamba.data.encoded import EncodedData, encode
from ftmamba.data.interactions import Interactions
from ftmamba.data.popularity import PopularityHistory
from ftmamba.data.tables import load_tables
from ftmamba.recipe import TrainingRecipe, build, upgraded
from ftmamba.training.loop import TrainingLoop
from modeling_ftmamba.configuration_ftmamba import FTMambaConfig, column_from_dict
from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel

N_USERS, N_ITEMS = 16, 20
DAY = 86_400
ROWS, SEQUENCES = {"batch_size": 16}, {"batch_size": 4, "sequences": "newest"}
OBJECTIVES = {
    "in_batch": ({"name": "in_batch", "mask_known_positives": True}, ROWS),
    "full_softmax": ({"name": "full_softmax", "user_weight_exponent": 0.5}, ROWS),
    "sampled": ({"name": "full_softmax", "n_sampled_items": 3, "mask_known_positives": True}, ROWS),
    "sampled_softmax": ({"name": "sampled_softmax", "negatives": "mixed"}, ROWS),
    "full_mse": ({"name": "full_mse"}, ROWS),
    "gbce": ({"name": "gbce", "n_negatives": 6}, ROWS),
    "bce": ({"name": "bce", "mask_known_positives": True}, ROWS),
    "full_softmax of sequences": ({"name": "full_softmax", "mask_history": True}, SEQUENCES),
    "repeats": ({"name": "full_softmax"}, SEQUENCES),
    "sampled, sequences": ({"name": "full_softmax", "n_sampled_items": 3}, SEQUENCES),
    "in_batch of sequences": ({"name": "in_batch", "mask_known_positives": True}, SEQUENCES),
    "popularity": ({"name": "sampled_softmax", "time_buckets": 0}, SEQUENCES),
    "mse of sequences": ({"name": "mse"}, SEQUENCES),
}
"""Losses whose gradients are compared over ranks, and the batch that each of two ranks has."""


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
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"interactions-{with_popularity}.arrow"
    if not path.exists():
        write_arrays(path, arrays)
    popularity = [{"name": "popularity", "kind": "numeric", "popularity_days": 7}]
    item_columns = _columns("item", N_ITEMS) + popularity * with_popularity
    extractor = SimpleNamespace(
        user_columns=_columns("user", N_USERS),
        item_columns=item_columns,
        columns=lambda _tower: tuple(map(column_from_dict, item_columns)),
        to_json_file=lambda path: path.write_text("{}"),
        encoder=lambda *_: SimpleNamespace(encode=lambda raw_R: np.float32(raw_R)[:, None]),
    )
    return EncodedData(
        extractor=extractor,
        users=_tensors(N_USERS, 1),
        items=_tensors(N_ITEMS, 1 + with_popularity),
        interactions=path,
        popularity_history=history,
        item_counts=np.bincount(train.item_ids, minlength=N_ITEMS),
        as_of=int(train.times.max()) + 1,
        n_users=N_USERS,
    )


def model(data: EncodedData, **fields) -> FTMambaTwoTowerModel:
    """Build a one-layer model with seeded weights."""
    torch.manual_seed(3)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4, "projection_size": 16}
    if data.history_column is not None:
        small |= {"pooling": "last", "history_start": True}
    return FTMambaTwoTowerModel(
        FTMambaConfig.from_columns(
            data.extractor.user_columns,
            data.extractor.item_columns,
            **{**small, "temperature": 0.5, "learn_temperature": True, **fields},
        )
    )


def encoded_sequences(
    folder: Path, *, with_popularity: bool = False, with_profile: bool = True
) -> EncodedData:
    """Encode users who take from 3 to 12 of the items, some of them again, a few at one second."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(N_USERS):
        times = np.sort(rng.integers(0, 40, size=rng.integers(3, 13))) * DAY // 2
        rows += [(f"u{user}", f"i{rng.integers(N_ITEMS):02}", int(time)) for time in times]
    users, items, times = (list(column) for column in zip(*rows, strict=True))
    columns = {"item_id": "categorical", "size": "numeric"}
    history = {"kind": "history", "max_length": 8, "event_features": ["gap"]}
    schema = {
        "users": {"key": "user_id", "columns": {"age": "numeric", "history": history}},
        "items": {"key": "item_id", "columns": columns, "popularity_days": [3, 99]},
        "interactions": {"user": "user_id", "item": "item_id", "time": "time"},
    }
    if not with_popularity:
        del schema["items"]["popularity_days"]
    if not with_profile:
        del schema["users"]["columns"]["age"]
    user_keys, item_keys = ([f"u{n}" for n in range(N_USERS)], [f"i{n:02}" for n in range(N_ITEMS)])
    tables = load_tables(
        pa.table({"user_id": user_keys, "age": [20.0 + n for n in range(N_USERS)]}),
        pa.table({"item_id": item_keys, "size": [float(n) for n in range(N_ITEMS)]}),
        pa.table({"user_id": users, "item_id": items, "time": times}),
        schema,
    )
    return encode(tables, tables.interactions, cache_dir=folder)


def training_recipe(**options) -> TrainingRecipe:
    """Build the training section."""
    return build(TrainingRecipe, upgraded({"training": options})["training"])


def gradients(
    folder: Path, name: str, *, n_ranks: int, accelerator: Accelerator
) -> dict[str, torch.Tensor]:
    """Return the gradient of the first global batch's loss, as the training loop computes it."""
    loss, options = OBJECTIVES[name]
    if "sequences" in options:
        data = encoded_sequences(folder / "data", with_popularity=name == "popularity")
        network = model(data, repeat_bias=name == "repeats")
    else:
        data = encoded(folder / "data")
        network = model(data)
    batch_size = options["batch_size"] * (2 // n_ranks)
    recipe = training_recipe(**{**options, "batch_size": batch_size, "loss": loss})
    loop = TrainingLoop(network, data, recipe, accelerator, folder=folder, seed=5)
    batch = next(iter(loop.batches.epoch(0)))
    loss_value = loop.wrapped(loop.objective.prepare(batch, 0))
    accelerator.backward(loss_value)
    found = {name: p.grad.clone() for name, p in loop.base.named_parameters()}
    found["loss"] = accelerator.reduce(loss_value.detach(), "mean")
    found["n_targets"] = torch.tensor(len(batch.targets))
    return found


def _columns(tower: str, n: int) -> list[dict]:
    return [
        {"name": f"{tower}_id", "kind": "categorical", "vocabulary_size": 3 + n},
        {"name": f"{tower}_number", "kind": "numeric"},
    ]


def _tensors(n: int, n_numeric: int) -> dict[str, torch.Tensor]:
    numeric = torch.randn(n, n_numeric, generator=torch.Generator().manual_seed(n))
    numeric[:, 1:] = torch.nan
    return {"numeric": numeric, "category_ids": 3 + torch.arange(n)[:, None]}
