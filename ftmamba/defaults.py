"""What a run does where its user gives no recipe: rules by the shape of the data, each measured.

No rule looks at a name of the data but the word by which a rating is known. A given option replaces
what is proposed, and the rules that depend on it go by the given one.

The measurements are on five sets of tables: 138 guests of restaurants, MovieLens
latest-small, a shop's exports, 5,000 purchases of clothes and 5,000 playlists.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ftmamba.data.batches import LONGEST_WINDOW
from ftmamba.data.interactions import Interactions
from ftmamba.data.schema import Schema
from ftmamba.data.schema_inference import is_rating
from ftmamba.data.tables import Tables
from ftmamba.evaluation.baselines import GRIDS, proposed_baselines
from ftmamba.evaluation.splits import make_split
from ftmamba.recipe import EvaluationRecipe, Recipe, as_mapping, lay_over, recipe_from_dict

POSITIVE_SHARE = 0.7
"""A rating is positive from so far up its scale on: 4 of 1 to 5, 8 of 1 to 10."""
MOST_LEVELS = 21
"""More different values than 0 to 10 in halves are no scale but a measurement."""

FEWEST_TEST_USERS = 20
LEAST_WARM = 0.5
SHORTEST_HISTORY = 3

MOST_ITEMS_OF_A_SOFTMAX = 15_000
"""Items up to which every step scores all of them. The playlists have 20,635: an epoch costs a
third with negatives drawn, and eight such epochs reach .108 on validation."""

STEPS = 2_500
"""Steps that are enough: the playlists get better up to the last of 2,576, MovieLens latest-small
is at its best after 580 of 930, the restaurants after 90 of 900."""
MOST_STEPS_AN_EPOCH = 1_000
STEPS_OF_ROWS = 200
"""Where few people come back: the 5,000 purchases are at their best after 30 steps of 256."""
FEWEST_EPOCHS, MOST_EPOCHS, N_VALIDATIONS, PATIENCE = 4, 100, 20, 6
"""The restaurants' epochs of a second are validated every fifth: 138 users are mostly noise."""
FEWEST_WINDOWS, MOST_WINDOWS = 16, 128
"""Sequences a step; 16 is what the published recipes for sequences were tuned with."""
ROWS_A_STEP = 256

WORK_OF_AN_EVENT, WORK_OF_AN_ITEM = 1e6, 400
"""Multiplications of two layers of width 64 for an event, and of the softmax for each item."""
WORK_OF_A_STEP = 1e9
"""As much time takes what does not grow with the events: candidates, optimizer, bookkeeping."""
WORK_OF_POPULARITY = 5
"""Times as long where items have popularity columns, for the catalogue is embedded as of four times
a step: an epoch of the shop takes 23 s of one core with them, 5 without."""
REFIT_SHARE = 0.2
"""Of the best number of epochs, with the validation part: see `REFIT_RATE`."""
MOST_WORK = 4e12
"""Of all epochs, about three minutes of one core: MovieLens latest-small takes 10 s for 2.3e11."""


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
    values: dict[str, Any] = {}
    reasons: list[str] = []

    def add(section: str, options: dict[str, Any], reason: str) -> None:
        values[section] = {**values.get(section, {}), **options}
        reasons.append(reason)

    def recipe() -> Recipe:
        return recipe_from_dict(lay_over(Recipe, values, given))

    events = tables.interactions
    threshold, why = positive_threshold(tables)
    if why:
        add("data", {} if threshold is None else {"positive_threshold": threshold}, why)
    if (least := recipe().data.positive_threshold) is not None:
        events = events.at_least(least)
    # Whether people come back does not depend on how they liked what they had.
    add("split", *choose_split(tables.interactions))
    if tables.schema.users.history_column is None:
        return Proposal(values, tuple(reasons))
    kind = recipe().split.kind
    schema = tables.schema
    if schema.items.popularity_columns and kind != "global-time" and not given.get("schema"):
        schema = _without_popularity(schema)
        values["schema"] = schema.to_dict()
        reasons.append(
            f"schema: no popularity columns, for under {kind} each test has a time of its own"
        )
    add("model", *_model(schema))
    train = make_split(kind, recipe().split.options(recipe().seed)).split(events).train
    training, refit, why = _training(kind, schema, train, n_items=tables.items.num_rows)
    add("training", training, why)
    if as_mapping(given.get("evaluation", {}), EvaluationRecipe).get("refit", True) is False:
        refit = {}
    names, reasons_of_names = proposed_baselines(events)
    # Given ones may have nothing to choose.
    chosen = recipe().evaluation.baselines or names
    longest = min(10, tables.items.num_rows)
    evaluation = {"k": sorted({min(5, longest), longest}), **refit, "baselines": list(names)}
    if longest < 10:
        evaluation["selection_metric"] = f"NDCG@{longest}"
        reasons.append(f"evaluation.k: {longest} at most, for there are {longest} items")
    add("evaluation", evaluation | {"tune_baselines": bool(GRIDS.keys() & {*chosen})},
        f"evaluation.baselines: {', '.join(names)}")  # fmt: skip
    reasons += reasons_of_names
    values["blend"] = "auto"
    reasons.append("blend: auto, counted neighbours and popularity are added where they help")
    return Proposal(values, tuple(reasons))


def positive_threshold(tables: Tables) -> tuple[float | None, str]:
    """Return the least rating that counts as positive, where rows are ratings, and why.

    A row that says more than who, what, when and how good is something that happened, such as an
    order: it counts whatever its rating, which the history has beside it.
    """
    events, weights_R = tables.schema.interactions, tables.interactions.weights
    name = events.weight
    if weights_R is None or not is_rating(name):
        return None, ""
    levels = np.unique(weights_R)
    if not 2 < len(levels) <= MOST_LEVELS:
        return None, f"data.positive_threshold: none, for {name!r} has {len(levels)} levels"
    known = {events.user, events.item, events.time, events.order}
    others = [one for one in tables.event_columns if one not in known and not is_rating(one)]
    if others:
        return None, (
            "data.positive_threshold: none, for a row is more than a rating, it has "
            f"{others[0]!r}: those of any {name!r} count"
        )
    low, high = float(levels[0]), float(levels[-1])
    least = float(levels[levels >= low + POSITIVE_SHARE * (high - low) - 1e-6][0])
    share = float((weights_R >= least).mean())
    return least, (
        f"data.positive_threshold: {least:g}, for {name!r} is a rating from {low:g} to {high:g}, "
        f"and {share:.0%} of the interactions have {least:g} or more"
    )


def choose_split(events: Interactions) -> tuple[dict[str, Any], str]:
    """Return how the interactions are divided, and why.

    Leaving out each user's last interaction asks about people that the model knows, a cut in time
    also about others. Where nearly all test users of a cut are new although people come back, the
    cut says nothing about histories: MovieLens latest-small, whose users rate in one sitting, has
    25 % known users after it, the shop 54 %.
    """
    chosen = {"kind": "random"}
    if not events.is_ordered:
        return chosen, (
            "split: random for each user, for the interactions have neither times nor an order"
        )
    counts = np.bincount(events.user_ids)
    counts = counts[counts > 0]
    is_long, median = int((counts >= SHORTEST_HISTORY).sum()), float(np.median(counts))
    has_last = is_long >= min(FEWEST_TEST_USERS, len(counts) / 2)
    if events.times is None:
        if has_last:
            return {"kind": "leave-last-out"}, (
                "split: leave-last-out, for the interactions have an order and no times"
            )
        return chosen, f"split: random, for {is_long} users only have 3 interactions or more"
    warm = _warm_share(events)
    if warm is not None and (warm >= LEAST_WARM or median < SHORTEST_HISTORY or not has_last):
        return {"kind": "global-time"}, (
            f"split: global-time, for the interactions have times ({warm:.0%} of the test users "
            "have earlier interactions)"
        )
    if has_last:
        found = "nobody" if warm is None else f"{warm:.0%} of the test users"
        return {"kind": "leave-last-out"}, (
            f"split: leave-last-out, for after a cut in time {found} would have earlier "
            f"interactions, while the median user has {median:g}"
        )
    return chosen, "split: random, for there are too few interactions for a split by time"


def _warm_share(events: Interactions) -> float | None:
    """Return the share of users known before the test of a cut in time, None without a part."""
    try:
        split = make_split("global-time").split(events)
    except ValueError:
        return None
    if not len(split.validation):
        return None
    return float(np.isin(np.unique(split.test.user_ids), split.before_test.user_ids).mean())


def _model(schema: Schema) -> tuple[dict[str, Any], str]:
    """Return the network, and why."""
    overrides = {
        # Something must be read of a person without events; a column of the users will do.
        "history_start": len(schema.users.columns) == 1,
        "normalize_embeddings": True,
        "temperature": 0.07,
        "learn_temperature": True,
    }
    return (
        {"preset": "ft-mamba-history", "overrides": overrides},
        "model: ft-mamba-history, which reads each user's earlier interactions",
    )


def _without_popularity(schema: Schema) -> Schema:
    """Return the schema without the items' columns of popularity."""
    columns = tuple(column for column in schema.items.columns if not column.popularity_days)
    return Schema(schema.users, replace(schema.items, columns=columns), schema.interactions)


def _training(
    split: str, schema: Schema, train: Interactions, *, n_items: int
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Return how the model is trained, how it learns the validation part too, and why."""
    counts_U = np.bincount(train.user_ids, minlength=train.n_users)
    loss: dict[str, Any] = {"name": "full_softmax", "mask_history": True}
    if n_items > MOST_ITEMS_OF_A_SOFTMAX:
        loss = {
            "name": "sampled_softmax", "n_negatives": 2048, "negatives": "mixed",
            "mask_history": True,
        }  # fmt: skip
    values: dict[str, Any] = {
        "loss": loss, "learning_rate": 2e-3, "adam_beta2": 0.98, "weight_decay": 0.01
    }  # fmt: skip
    if counts_U[counts_U > 1].sum() >= len(train) / 2:
        history = schema.users.history_column
        longest = (history and history.max_length) or LONGEST_WINDOW
        n_rows = int(np.ceil(np.maximum(counts_U - 1, 0) / longest).sum())
        # Doubled until a step is a thousandth of an epoch.
        batch_size = min(
            MOST_WINDOWS,
            max(FEWEST_WINDOWS, 2 ** ((n_rows - 1) // MOST_STEPS_AN_EPOCH).bit_length()),
        )
        values |= {"sequences": "every", "batch_size": batch_size}
    else:
        n_rows, batch_size = len(train), ROWS_A_STEP
        values |= {"sequences": "", "batch_size": batch_size, "history_dropout": 0.2}
    n_steps = math.ceil(n_rows / batch_size)
    has_popularity = bool(schema.items.popularity_columns)
    work = len(train) * (WORK_OF_AN_EVENT + WORK_OF_AN_ITEM * loss.get("n_negatives", n_items))
    work += n_steps * WORK_OF_A_STEP
    work *= WORK_OF_POPULARITY if has_popularity else 1
    most = max(FEWEST_EPOCHS, min(MOST_EPOCHS, int(MOST_WORK / work)))
    wanted = STEPS if values["sequences"] else STEPS_OF_ROWS
    n_epochs = min(most, max(FEWEST_EPOCHS, math.ceil(wanted / n_steps)))
    values |= {
        "num_epochs": n_epochs,
        "evaluate_every": math.ceil(n_epochs / N_VALIDATIONS),
        "early_stopping_patience": PATIENCE,
    }
    # After a cut in time the items of the validation part may be new: only a model that is trained
    # afresh has rows for their keys.
    again = split == "global-time" and (has_popularity or 2 * n_epochs * work <= MOST_WORK)
    refit = {"refit": True} if again else {"refit": True, "refit_share": REFIT_SHARE}
    how = "trained again" if again else f"and {REFIT_SHARE:.0%} of them more"
    return (
        values,
        refit,
        (
            f"training: {loss['name']}, {n_epochs} epochs of {n_steps} steps at most, for "
            f"{len(train):,} interactions with {n_items:,} items; {how} with the validation part"
        ),
    )
