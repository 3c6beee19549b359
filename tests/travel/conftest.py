"""Checkpoints with every kind of column, and processes of their own that load them."""

from importlib.metadata import distribution, packages_distributions
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import torch
from packaging.requirements import Requirement

from ftmamba.checkpoint import Checkpoint, save_checkpoint
from ftmamba.data.fitting import fit_extractor
from ftmamba.data.interactions import Interactions
from ftmamba.known_users import known_users
from ftmamba.table_embedding import embed_catalogue
from modeling_ftmamba import FTMambaConfig, FTMambaFeatureExtractor, FTMambaTwoTowerModel

HERE = Path(__file__).parent
OWN_PACKAGES = {"ftmamba", "modeling_ftmamba", "hub_cards", "train_accelerate", "tests"}
EXTRAS = {"pyarrow", "datasets", "pandas", "accelerate", "scipy", "implicit"}
N_USERS, N_ITEMS = 24, 30

USER_COLUMNS = [
    {"name": "age", "kind": "numeric"},
    {"name": "income", "kind": "numeric", "scaling": "quantile"},
    {"name": "occupation", "kind": "categorical"},
    {"name": "zip", "kind": "categorical", "min_count": 2, "hash_buckets": 5},
    {"name": "joined", "kind": "timestamp"},
]
ITEM_COLUMNS = [
    {"name": "item_id", "kind": "categorical"},
    {"name": "genres", "kind": "categories", "separator": "|"},
    {"name": "released", "kind": "timestamp"},
    {"name": "text", "kind": "vector"},
    {"name": "popularity_7d", "kind": "numeric", "popularity_days": 7},
]
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "mamba": {},
    "mamba-both-ways": {"bidirectional": True, "numeric_embedding": "ple", "pooling": "mean"},
    "ssd": {"mixer": "ssd"},
    "attention": {"mixer": "attention", "numeric_embedding": "periodic"},
}


class Travelling(NamedTuple):
    """A trained checkpoint and its folder."""

    checkpoint: Checkpoint
    folder: Path

    def expected(self, records):
        """Return what the trained model, in this process, makes of the records.

        With the scan that travels: the compiled one stays with the package that brings it.
        """
        model, extractor = self.checkpoint.model, self.checkpoint.extractor
        model.set_scan("sequential")
        with torch.inference_mode():
            output = model(**extractor(users=records["users"], items=records["items"]))
            first = model.get_user_embeddings(**extractor(users=records["users"][0]))
        return {
            "user_embeds": output.user_embeds,
            "item_embeds": output.item_embeds,
            "scores": output.scores,
            "first_user_embeds": first,
        }


def make_users() -> dict[str, list[Any]]:
    rng = np.random.default_rng(1)
    return {
        "user_id": [f"u{row}" for row in range(N_USERS)],
        "age": rng.integers(10, 90, N_USERS).tolist(),
        "income": (rng.standard_normal(N_USERS) * 1e4).tolist(),
        "occupation": ["doctor", "Ärztin", None, "artist"] * (N_USERS // 4),
        "zip": [f"{code:05}" for code in rng.integers(0, 12, N_USERS)],
        "joined": rng.integers(10**9, 2 * 10**9, N_USERS).tolist(),
    }


def make_items() -> dict[str, list[Any]]:
    rng = np.random.default_rng(2)
    return {
        "item_id": [f"i{row:02}" for row in range(N_ITEMS)],
        "title": [f"Film {row} 日本" for row in range(N_ITEMS)],
        "genres": ["drama|war", "war", "comedy|drama|noir"] * (N_ITEMS // 3),
        "released": [f"20{row:02}-0{1 + row % 9}-1{row % 9}" for row in range(N_ITEMS)],
        "text": rng.standard_normal((N_ITEMS, 3)).tolist(),
        "popularity_7d": np.log1p(rng.integers(0, 9, N_ITEMS)).tolist(),
    }


def make_checkpoint(**architecture: Any) -> Checkpoint:
    """Return a checkpoint after three training steps: no parameter has its initial value."""
    users, items = make_users(), make_items()
    extractor = FTMambaFeatureExtractor(USER_COLUMNS, ITEM_COLUMNS, "user_id", "item_id")
    extractor = fit_extractor(extractor, pa.table(users), items)
    sizes = {"hidden_size": 16, "head_hidden_size": 16, "projection_size": 8}
    config = FTMambaConfig.from_columns(
        extractor.user_columns,
        extractor.item_columns,
        **{**sizes, "temperature": 0.5, "learn_temperature": True, **architecture},
    )
    torch.manual_seed(0)
    model = FTMambaTwoTowerModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(3):
        labels_U = (torch.arange(N_USERS) + step) % N_ITEMS
        model(**extractor(users=users, items=items), labels=labels_U).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    rng = np.random.default_rng(3)
    user_ids, item_ids = rng.integers(N_USERS, size=60), rng.integers(N_ITEMS, size=60)
    seen = Interactions(user_ids, item_ids, None, None, n_users=N_USERS, n_items=N_ITEMS)
    columns = [column["name"] for column in USER_COLUMNS]
    return Checkpoint(
        model=model,
        extractor=extractor,
        catalogue=embed_catalogue(
            model, extractor(items=items), keys=items["item_id"], titles=items["title"], as_of=7
        ),
        users=known_users(pa.table(users), seen, key="user_id", columns=columns),
        card="---\nlicense: apache-2.0\n---\n# Films\n",
    )


@pytest.fixture(scope="session")
def travelling(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Travelling]:
    """A trained checkpoint of each architecture, saved."""
    made = {}
    for name, architecture in ARCHITECTURES.items():
        made[name] = Travelling(
            make_checkpoint(**architecture), tmp_path_factory.mktemp("runs") / name
        )
        save_checkpoint(made[name].folder, made[name].checkpoint)
    return made


@pytest.fixture(scope="session")
def records() -> dict[str, Any]:
    """Raw records as a stranger types them: gaps, unseen values, unknown columns."""
    items = make_items()
    films = [{name: values[row] for name, values in items.items()} for row in range(0, N_ITEMS, 4)]
    return {
        "users": [
            {"age": 31, "income": 1200.5, "occupation": "doctor", "zip": "00003", "joined": 10**9},
            {"age": 31.5, "occupation": "Ärztin", "zip": "never seen", "shoe_size": 43},
            {"occupation": "never seen", "age": None},
        ],
        "items": [*films, {"genres": "war|never seen"}, {"text": [0.1, -0.2, 0.3]}],
    }


@pytest.fixture(scope="session")
def not_bare() -> list[str]:
    """The packages that torch and transformers do without: installed ones, and this project's."""
    needed: set[str] = set()
    waiting = ["torch", "transformers"]
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name not in needed:
            needed.add(name)
            for text in distribution(name).requires or ():
                requirement = Requirement(text)
                if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                    waiting.append(requirement.name)
    blocked = {
        package
        for package, owners in packages_distributions().items()
        if needed.isdisjoint(owner.lower().replace("_", "-") for owner in owners)
    }
    return sorted(blocked | OWN_PACKAGES | EXTRAS)
