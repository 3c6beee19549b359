"""The card of a data set, from its tables and their schema."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ftmamba.data.schema import TableSchema
from ftmamba.data.tables import Tables
from ftmamba.experiment.card import column_facts, data_name, data_terms
from ftmamba.experiment.data_facts import describe_tables
from ftmamba.recipe import Recipe
from hub_cards.dataset_card import (
    DatasetCardFacts,
    InteractionFacts,
    TableFacts,
    render_dataset_card,
)


def dataset_card(recipe: Recipe, tables: Tables, *, licence: str = "other") -> str:
    """Return the text of the card.

    Args:
        recipe: names the tables; its section `card` says what no table can.
        tables: read as the recipe says.
        licence: of the data, as the Hub spells it.
    """
    facts = describe_tables(tables)
    schema = tables.schema
    roles = {
        role: column
        for role, column in schema.interactions.to_dict().items()
        if role in ("user", "item", "time", "weight")
    }
    counted = facts["interactions"]
    return render_dataset_card(
        DatasetCardFacts(
            name=recipe.card.title or data_name(recipe),
            repo=recipe.card.data_hub_id or "owner/name",
            users=_table_facts(facts, recipe, "users", schema.users),
            items=_table_facts(facts, recipe, "items", schema.items),
            interactions=InteractionFacts(
                file=_file_name(recipe, "interactions"),
                rows=counted["rows"],
                roles=roles,
                per_user=counted["per_user"],
                per_item=counted["per_item"],
                share_of_top_tenth=counted["share_of_top_tenth"],
                period=(counted["first"], counted["last"]) if "first" in counted else (),
            ),
            schema=yaml.safe_dump(
                {"schema": schema.to_dict()}, sort_keys=False, allow_unicode=True
            ),
            licence=licence,
            terms=data_terms(recipe),
            citation=recipe.card.citation,
        )
    )


def _table_facts(
    facts: Mapping[str, Any], recipe: Recipe, name: str, schema: TableSchema
) -> TableFacts:
    return TableFacts(
        name=name,
        file=_file_name(recipe, name),
        rows=facts[name]["rows"],
        key=schema.key,
        title=schema.title,
        columns=[column_facts(facts, name, column.to_dict()) for column in schema.raw_columns],
    )


def _file_name(recipe: Recipe, table: str) -> str:
    """Return the file's own name, or what a named data set's table would be saved as."""
    path = Path(getattr(recipe.data, table) or f"{table}.parquet")
    return path.name if path.suffix else f"{table}.parquet"
