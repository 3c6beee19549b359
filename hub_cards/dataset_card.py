"""Write the card of a data set: three tables, what is in them, how to load and to train on them."""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import DatasetCardData
from markupsafe import Markup

from ftmamba.data.tables import Tables
from ftmamba.recipe import Recipe
from ftmamba.results import describe_tables
from hub_cards.card import one_line, render
from hub_cards.facts import column_facts, data_name, data_terms

TAGS = ("recommendation", "tabular", "ftmamba")
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"),
          (10**7, "1M<n<10M"), (10**8, "10M<n<100M"), (10**9, "100M<n<1B"))  # fmt: skip


def dataset_card(recipe: Recipe, tables: Tables, *, licence: str = "other") -> str:
    """Return the text of the card: metadata in YAML, then Markdown."""
    facts, schema = describe_tables(tables), tables.schema
    files = {}
    for table in ("users", "items", "interactions"):
        path = Path(getattr(recipe.data, table))
        # A named data set has no files: a table would be saved as Parquet.
        files[table] = path.name if path.suffix else f"{table}.parquet"
    roles = {
        role: column
        for role, column in schema.interactions.to_dict().items()
        if role in ("user", "item", "time", "weight")
    }
    name = recipe.card.title or data_name(recipe)
    return render(
        "dataset_card.md.jinja",
        metadata=_metadata(name, licence, files, facts["interactions"]["rows"]),
        name=name,
        repo=recipe.card.data_hub_id or "owner/name",
        tables=[
            {
                "name": table,
                "file": files[table],
                "rows": facts[table]["rows"],
                "key": of_table.key,
                "title": of_table.title,
                "columns": [
                    column_facts(facts, table, column.to_dict()) for column in of_table.raw_columns
                ],
            }
            for table, of_table in (("users", schema.users), ("items", schema.items))
        ],
        interactions={**facts["interactions"], "file": files["interactions"], "roles": roles},
        schema=yaml.safe_dump({"schema": schema.to_dict()}, sort_keys=False, allow_unicode=True),
        licence=licence,
        terms=data_terms(recipe),
        citation=recipe.card.citation,
    )


def _metadata(name: str, licence: str, files: dict[str, str], n_rows: int) -> Markup:
    """Return the card's metadata as YAML; each table is a configuration of its own."""
    configs: list[dict[str, Any]] = [
        {"config_name": table, "data_files": one_line(file)} for table, file in files.items()
    ]
    data = DatasetCardData(
        pretty_name=one_line(name),
        license=one_line(licence),
        task_categories=["other"],
        tags=list(TAGS),
        size_categories=[size_category(n_rows)],
        configs=configs,
    )
    return Markup(data.to_yaml())


def size_category(n_rows: int) -> str:
    """Return the Hub's name of a size."""
    return next((name for limit, name in _SIZES if n_rows < limit), "n>1B")
