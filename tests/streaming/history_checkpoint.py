"""A tiny recommender with a history, and events for it."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch

from ftmamba.checkpoint import Checkpoint
from ftmamba.data.fitting import fit_extractor
from ftmamba.data.interactions import Interactions
from ftmamba.known_users import known_users
from ftmamba.streaming import UserEvent
from ftmamba.table_embedding import embed_catalogue
from modeling_ftmamba.configuration_ftmamba import FTMambaConfig
from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel
from modeling_ftmamba.processing_ftmamba import Event, FTMambaFeatureExtractor

N_ITEMS = 20
HISTORY = {
    "name": "films",
    "kind": "history",
    "event_features": ["price", "gap", "on_sale", "weight"],
    "event_scales": [[250.0, 40.0], [0.0, 1.0], [0.5, 0.5], [0.0, 1.0]],
}
PROFILE = [{"name": "age", "kind": "numeric"}, {"name": "gender", "kind": "categorical"}]


def make_checkpoint(user_columns=(*PROFILE, HISTORY), **architecture) -> Checkpoint:
    """Return an untrained recommender whose parameters all matter.

    Of the known users u5 has a history, i00 and i01, the second at a price of 300.
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
    extractor = fit_extractor(extractor, users, pa.table(items))
    sizes = {"hidden_size": 16, "state_size": 4, "head_hidden_size": 16, "projection_size": 8}
    fields = {**sizes, "repeat_bias": HISTORY in user_columns, **architecture}
    config = FTMambaConfig.from_columns(extractor.user_columns, extractor.item_columns, **fields)
    torch.manual_seed(0)
    model = FTMambaTwoTowerModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    catalogue = embed_catalogue(model, extractor(items=items), keys=items["item_id"], titles=())
    context = {"price": np.array([np.nan, 300], np.float32)}
    times, stars = np.array([400, 500]), np.array([4.0, 2.0], np.float32)
    history = Interactions(np.array([5, 5]), np.array([0, 1]), times, stars, 6, N_ITEMS, context)
    return Checkpoint(
        model=model,
        extractor=extractor,
        catalogue=catalogue,
        users=known_users(users, history, key="user_id", columns=["age", "gender"]),
    )


def event(user, item, event_id="", *, item_record=None, user_record=None, **values) -> UserEvent:
    return UserEvent(user, Event(item, **values), event_id, item_record, user_record)


def changed(one: UserEvent, **values) -> UserEvent:
    """Return an event with other values, its own or those of the arrival."""
    outer = {name: values.pop(name) for name in list(values) if hasattr(one, name)}
    return replace(one, event=one.event._replace(**values), **outer)


def make_events(n_events: int, *, n_users: int = 9, seed: int = 0) -> list[UserEvent]:
    """Return events in order of time; users u6 and above are not known to the checkpoint.

    Most have a price, and now and then a number of another model.
    """
    rng = np.random.default_rng(seed)
    contexts = (
        {},
        {"price": 0.0, "on_sale": 1.0},
        {"price": 250.0, "of another model": 3.0},
        {"price": 400.0, "on_sale": 0.0},
    )
    times = 1_000_000 + rng.integers(0, 500, n_events).cumsum()
    return [
        event(
            f"u{rng.integers(n_users)}",
            f"i{rng.integers(N_ITEMS):02}",
            f"e{number}",
            time=float(time),
            weight=float(rng.integers(1, 6)),
            context=contexts[rng.integers(4)],
        )
        for number, time in enumerate(times)
    ]


def write_events(path, events) -> None:
    path.write_text("".join(f"{one.to_json()}\n" for one in events), encoding="utf-8")
