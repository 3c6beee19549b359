"""`python -m ftmamba evaluate`: repeat the evaluation of a checkpoint from its recipe.

Shapes: U users, I items, E embedding, W popularity columns.
"""

import json
import logging
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import Tensor

    from ftmamba.checkpoint import Checkpoint
    from ftmamba.data.interactions import Interactions
    from ftmamba.data.tables import Tables
    from ftmamba.evaluation import Evaluation, Split
    from ftmamba.evaluation.protocol import Scorer
    from ftmamba.recipe import Recipe

logger = logging.getLogger(__name__)


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("checkpoint", help="folder of a checkpoint, or a Hub id such as name/repo")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument(
        "--allow_changed", "--allow-changed", choices=["data"], action="append", default=[],
        help="evaluate on tables to which rows were added since the training",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: Namespace) -> None:
    """Print the table of results."""
    from ftmamba.checkpoint import load_checkpoint
    from ftmamba.evaluation import Report

    checkpoint = load_checkpoint(arguments.checkpoint, revision=arguments.revision)
    split, evaluation = repeat_evaluation(checkpoint, allowed=arguments.allow_changed)
    if arguments.json:
        print(json.dumps(evaluation.to_dict(), indent=2))
        return
    print(Report.of({"this checkpoint": evaluation}, split=split.description))


def repeat_evaluation(
    checkpoint: "Checkpoint", *, allowed: "Collection[str]" = ()
) -> tuple["Split", "Evaluation"]:
    """Read and split the recipe's tables, and evaluate the model on the test part.

    The items are embedded afresh, as of the beginning of the test: the catalogue of the
    checkpoint may be of a later time, which would leak the test part.

    Raises:
        ValueError: the tables are not those of the training, unless `data` is allowed and rows were
            added after them.
    """
    import torch

    from ftmamba.data.histories import histories_of
    from ftmamba.data.popularity import PopularityHistory
    from ftmamba.evaluation import evaluate
    from ftmamba.evaluation.blending import BlendedScorer
    from ftmamba.recipe import recipe_from_dict
    from ftmamba.table_embedding import embed_table
    from ftmamba.training.embedding import embed_with_histories
    from ftmamba.training.run import make_protocol, scorer_of, split_tables
    from modeling_ftmamba.configuration_ftmamba import history_of

    if not checkpoint.recipe:
        raise ValueError("the checkpoint has no recipe.yaml, so its evaluation cannot be repeated")
    recipe = recipe_from_dict(dict(checkpoint.recipe))
    tables = tables_of(recipe)
    split = split_tables(tables, recipe)
    check_evaluated(checkpoint, recipe, tables, split, allowed=allowed)
    extractor: Any = checkpoint.extractor
    items: dict[str, Any] = {name: tables.items.column(name) for name in tables.items.column_names}
    # Popularity is counted as in training: in what the model was fitted on, up to the test.
    columns = tables.schema.items.popularity_columns
    fitted = split.before_test if recipe.evaluation.refit else split.train
    if columns and fitted.times is not None:
        as_of = int(fitted.times.max()) + 1 if split.test_time is None else split.test_time
        counts_IW = PopularityHistory(fitted).catalogue(as_of, [c.popularity_days for c in columns])
        items |= {each.name: counts for each, counts in zip(columns, counts_IW.T, strict=True)}

    def encode_items(start: int, stop: int) -> "Mapping[str, Tensor]":
        return extractor(items={name: column[start:stop] for name, column in items.items()})  # type: ignore[no-any-return]

    def encode_users(user_ids: "Tensor") -> "Mapping[str, Tensor]":
        return extractor(users=tables.users.take(user_ids.numpy()))  # type: ignore[no-any-return]

    model, n_users = checkpoint.model, tables.users.num_rows
    items_IE = embed_table(model, "item", tables.items.num_rows, encode_items)
    history = history_of(extractor.columns("user"))
    histories = None
    if history is None:
        users_UE = embed_table(
            model, "user", n_users, lambda start, stop: encode_users(torch.arange(start, stop))
        )
    else:
        histories = histories_of(split.before_test)
        every_U = torch.arange(n_users)
        users_UE = embed_with_histories(model, encode_users, every_U, items_IE, histories, history)
    towers = scorer_of(model, users_UE, items_IE, histories, history)
    scorer: Scorer = towers
    if (blend := checkpoint.catalogue.blend) is not None:
        scorer = BlendedScorer(towers, blend, None if histories is None else histories.items)
    protocol = make_protocol(recipe.evaluation)
    return split, evaluate(scorer, test=split.test, seen=split.before_test, protocol=protocol)


def check_evaluated(
    checkpoint: "Checkpoint",
    recipe: "Recipe",
    tables: "Tables",
    split: "Split",
    *,
    allowed: "Collection[str]",
) -> None:
    """Raise ValueError where figures would be of other data than those the model was trained on."""
    import numpy as np

    from ftmamba.identity import data_differences, differences, identity_of
    from ftmamba.training.run import split_tables

    stored = checkpoint.results.get("identity")
    if not isinstance(stored, dict):
        logger.warning("the checkpoint does not say on which data it was trained; not compared")
        return
    others = differences(stored, identity_of(recipe, tables), without=("model", "training", "code"))
    changed, is_extended = data_differences(stored.get("data", {}), tables)
    if others or (changed and not ("data" in allowed and is_extended)):
        problem = "; ".join([*changed, *others])
        remedy = "give the tables and the recipe of the training"
        if is_extended and not others:
            remedy += ", or evaluate on the tables as they are with --allow_changed data"
        raise ValueError(f"this is not the evaluation of the training: {problem}; {remedy}")
    if changed:
        first = np.arange(stored["data"]["interactions"]["rows"])
        former = replace(tables, interactions=tables.interactions.select(first))
        trained = events_of(split_tables(former, recipe).before_test)
        n_leaked = len(trained & events_of(split.test))
        if n_leaked:
            raise ValueError(
                f"{n_leaked} of {len(split.test)} test interactions were in training before rows "
                "were added; choose a split by time, or train again"
            )
        logger.warning("not the data of the training: %s", "; ".join(changed))


def events_of(interactions: "Interactions") -> set[tuple[int, ...]]:
    """Return user, item and time of the interactions."""
    columns = [interactions.user_ids, interactions.item_ids, interactions.times]
    return set(zip(*(one.tolist() for one in columns if one is not None), strict=True))


def tables_of(recipe: "Recipe") -> "Tables":
    """Read the tables that a recipe names."""
    from ftmamba.training.run import read_tables, start_processes

    if not recipe.data.name and not recipe.data.interactions:
        raise ValueError(
            "the run's tables were in memory, so they cannot be read again; write them to files "
            "and fit on their paths"
        )
    return read_tables(recipe.data, recipe.schema, start_processes())
