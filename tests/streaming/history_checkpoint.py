"""A tiny recommender with a history, and events for it."""

import numpy as np
import pyarrow as pa
import torch

from ftmamba.checkpoint import Checkpoint
from ftmamba.data.interactions import Interactions
from ftmamba.known_users import known_users
from ftmamba.streaming import Event
from ftmamba.table_embedding import embed_catalogue
from modeling_ftmamba.configuration_ftmamba import FTMambaConfig
from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel
from modeling_ftmamba.processing_ftmamba import FTMambaFeatureExtractor

N_ITEMS = 20
HISTORY = {"name": "taken", "kind": "history", "event_features": ["gap", "weight"]}
PROFILE = [{"name": "age", "kind": "numeric"}, {"name": "gender", "kind": "categorical"}]


def make_checkpoint(user_columns=(*PROFILE, HISTORY), **architecture) -> Checkpoint:
    """Return an untrained recommender whose every parameter says something.

    Of the users that it knows, u5 has taken i00 and i01, and the others nothing.
    """
    items = {
        "item_id": [f"i{row:02}" for row in range(N_ITEMS)],
        "year": [1980.0 + row for row in range(N_ITEMS)],
    }
    users = pa.table(
        {
            "user_id": [f"u{row}" for row in range(6)],
            "age": [20 + 3 * row for row in range(6)],
            "gender": ["F", "M", None] * 2,
        }
    )
    extractor = FTMambaFeatureExtractor(
        user_columns=list(user_columns),
        item_columns=[
            {"name": "item_id", "kind": "categorical"},
            {"name": "year", "kind": "numeric"},
        ],
        user_key="user_id",
        item_key="item_id",
    )
    extractor.fit(users, pa.table(items))
    sizes = {"hidden_size": 16, "state_size": 4, "head_hidden_size": 16, "projection_size": 8}
    fields = {**sizes, "repeat_bias": HISTORY in user_columns, **architecture}
    config = FTMambaConfig.from_columns(extractor.user_columns, extractor.item_columns, **fields)
    torch.manual_seed(0)
    model = FTMambaTwoTowerModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    catalogue = embed_catalogue(model, extractor(items=items), keys=items["item_id"], titles=())
    by, items_taken = np.array([5, 5]), np.array([0, 1])
    times, stars = np.array([400, 500]), np.array([4.0, 2.0], np.float32)
    taken = Interactions(by, items_taken, times, stars, n_users=6, n_items=N_ITEMS)
    return Checkpoint(
        model=model,
        extractor=extractor,
        catalogue=catalogue,
        users=known_users(users, taken, key="user_id", columns=["age", "gender"]),
    )


def make_events(n_events: int, *, n_users: int = 9, seed: int = 0) -> list[Event]:
    """Return events in order of time; users u6 and above are known to nobody."""
    rng = np.random.default_rng(seed)
    times = 1_000_000 + rng.integers(0, 500, n_events).cumsum()
    return [
        Event(
            user_key=f"u{rng.integers(n_users)}",
            item_key=f"i{rng.integers(N_ITEMS):02}",
            event_id=f"e{place}",
            time=int(time),
            weight=float(rng.integers(1, 6)),
        )
        for place, time in enumerate(times)
    ]


def write_events(path, events) -> None:
    path.write_text("".join(f"{event.to_json()}\n" for event in events), encoding="utf-8")
