"""`python -m ftmamba evaluate`: repeat the evaluation of a checkpoint from its recipe.

Shapes: U users, I items, E embedding.
"""

import json
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from ftmamba.checkpoint import Checkpoint
    from ftmamba.data.histories import Histories
    from ftmamba.data.tables import Tables
    from ftmamba.evaluation import Evaluation, Split
    from modeling_ftmamba.configuration_ftmamba import Column


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("checkpoint", help="folder of a checkpoint, or a Hub id such as name/repo")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: Namespace) -> None:
    """Print the table of results."""
    from ftmamba.checkpoint import load_checkpoint
    from ftmamba.evaluation import results_table

    checkpoint = load_checkpoint(arguments.checkpoint, revision=arguments.revision)
    split, evaluation = repeat_evaluation(checkpoint)
    if arguments.json:
        print(json.dumps(evaluation.to_dict(), indent=2))
        return
    protocol = evaluation.protocol
    print(f"{split.description}; {protocol.describe(evaluation.n_items)}\n")
    print(results_table({"this checkpoint": evaluation}, k=protocol.k[-1]))


def repeat_evaluation(checkpoint: "Checkpoint") -> tuple["Split", "Evaluation"]:
    """Read the recipe's tables, split them as it says, and evaluate the model on the test part.

    The items are embedded afresh, as of the beginning of the test: the catalogue of the
    checkpoint may be of a later time, and would know too much.

    Raises:
        ValueError: the checkpoint has no recipe, or its recipe or tables do not pass their checks.
        FileNotFoundError: a table is missing.
    """
    from accelerate import PartialState

    from ftmamba.data.histories import histories_of
    from ftmamba.evaluation import evaluate
    from ftmamba.recipe import recipe_from_dict
    from ftmamba.training.run import make_protocol, read_tables, scorer_of, split_tables
    from modeling_ftmamba.configuration_ftmamba import history_of

    if not checkpoint.recipe:
        raise ValueError("the checkpoint has no recipe.yaml, so its evaluation cannot be repeated")
    recipe = recipe_from_dict(dict(checkpoint.recipe))
    # Reading asks no more of Accelerate than which process downloads first: here is only one.
    state: Any = PartialState()
    tables = read_tables(recipe.data, recipe.schema, state)
    split = split_tables(tables, recipe)
    column = history_of(checkpoint.extractor.columns("user"))
    histories = None if column is None else histories_of(split.before_test)
    items_IE = _item_embeddings(checkpoint, tables, split, refit=recipe.evaluation.refit)
    users_UE = _user_embeddings(checkpoint, tables, items_IE, histories, column)
    scorer = scorer_of(checkpoint.model, users_UE, items_IE, histories, column)
    protocol = make_protocol(recipe.evaluation)
    return split, evaluate(scorer, test=split.test, seen=split.before_test, protocol=protocol)


def _user_embeddings(
    checkpoint: "Checkpoint",
    tables: "Tables",
    items_IE: "Tensor",
    histories: "Histories | None",
    column: "Column | None",
) -> "Tensor":
    import torch

    from ftmamba.table_embedding import embed_table
    from ftmamba.training.embedding import embed_with_histories

    def gather(user_ids: "Tensor") -> "Mapping[str, Tensor]":
        encoded: Mapping[str, Tensor] = checkpoint.extractor(
            users=tables.users.take(user_ids.numpy()), return_tensors="pt"
        )
        return encoded

    n_users, model = tables.users.num_rows, checkpoint.model
    if histories is not None and column is not None:
        every_U = torch.arange(n_users)
        return embed_with_histories(model, gather, every_U, items_IE, histories, column)
    return embed_table(
        model, "user", n_users, lambda start, stop: gather(torch.arange(start, stop))
    )


def _item_embeddings(
    checkpoint: "Checkpoint", tables: "Tables", split: "Split", *, refit: bool
) -> "Tensor":
    from ftmamba.table_embedding import embed_table

    items: dict[str, Any] = {name: tables.items.column(name) for name in tables.items.column_names}
    items |= _popularity(tables, split, refit=refit)

    def rows(start: int, stop: int) -> "Mapping[str, Tensor]":
        encoded: Mapping[str, Tensor] = checkpoint.extractor(
            items={name: column[start:stop] for name, column in items.items()}
        )
        return encoded

    return embed_table(checkpoint.model, "item", tables.items.num_rows, rows)


def _popularity(
    tables: "Tables", split: "Split", *, refit: bool
) -> dict[str, "NDArray[np.float32]"]:
    """Count popularity as training did: in what the model was fitted on, up to the test."""
    from ftmamba.data.popularity import PopularityHistory

    columns = tables.schema.items.popularity_columns
    known = split.before_test if refit else split.train
    if not columns or known.times is None:
        return {}
    as_of = split.test_time if split.test_time is not None else int(known.times.max()) + 1
    counts = PopularityHistory(known).catalogue(as_of, [c.popularity_days for c in columns])
    return {column.name: counts[:, place] for place, column in enumerate(columns)}
