"""Write the card of a checkpoint or of a data set: metadata for the Hub, then Markdown.

What is generated stands between `<!-- ftmamba:begin NAME -->` and `<!-- ftmamba:end NAME -->`, so
that a later card can replace it and leave alone what people have written around it.

Titles, column names and values come from people's tables and never become markup of any kind: each
filter below returns `Markup`, which Jinja does not escape again, and any text that reaches a
template without a filter is escaped for HTML. `huggingface_hub.ModelCard.from_template` neither
escapes nor refuses a missing value, so its template engine is not used; its metadata classes are.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import DatasetCardData, EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from ftmamba.checkpoint import CURVES_FILE, Checkpoint
from ftmamba.data.tables import Tables
from ftmamba.pictures import draw_learning_curves
from ftmamba.recipe import Recipe
from ftmamba.results import describe_tables
from hub_cards.facts import (
    ColumnFacts,
    Figure,
    ModelCardFacts,
    card_facts,
    column_facts,
    data_name,
    data_terms,
)
from hub_cards.handler import ANSWER_SCHEMA, REQUEST_SCHEMA

PIPELINE_FILE = "pipeline_ftmamba.py"
TAGS = ("ftmamba", "recommendation", "two-tower", "retrieval", "tabular")
METRIC_TYPES = {"P": "precision", "R": "recall", "HR": "hit_rate"}
"""What the Hub calls a metric, where that is not our name in small letters."""

_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"),
          (10**7, "1M<n<10M"), (10**8, "10M<n<100M"), (10**9, "100M<n<1B"))  # fmt: skip

LONGEST_TEXT, LONGEST_LITERAL = 300, 2_000
_LONGEST_NAME = 100
"""YAML folds a longer line, and not every reader unfolds it."""

_PINNED = re.compile(r'^repo, revision = ".*", ".*"$', re.MULTILINE)

ENDPOINT_ANSWER = [{"item_key": "its key", "score": 4.2, "title": "its title"}]
ENDPOINT_ERROR = {
    "error": {
        "type": "bad_request",
        "message": "top_k must be a whole number from 1 to 1000, got 0",
        "field": "parameters.top_k",
    }
}


def with_card(checkpoint: Checkpoint, *, folder: Path | None = None) -> Checkpoint:
    """Return the checkpoint with a new card and its learning curves (with matplotlib installed)."""
    training = checkpoint.results.get("training", {})
    curves = draw_learning_curves(
        training.get("history", []),
        metric=checkpoint.results.get("metric", "validation score"),
        best_epoch=training.get("best_epoch"),
    )
    facts = card_facts(checkpoint, folder=folder, curves=CURVES_FILE if curves else "")
    pictures = {CURVES_FILE: curves} if curves else {}
    return replace(checkpoint, card=render_model_card(facts), pictures=pictures)


def render_model_card(facts: ModelCardFacts) -> str:
    """Return the card."""
    verdict: dict[str, list[str]] = {"above": [], "below": [], "level": []}
    for row in facts.results[1:]:
        found = row.difference
        if found is not None and found.low is not None and found.high is not None:
            side = "above" if found.low > 0 else "below" if found.high < 0 else "level"
            verdict[side].append(row.name)
    return render(
        "model_card.md.jinja",
        facts=facts,
        metadata=model_metadata(facts),
        with_pipeline=PIPELINE_FILE in facts.code,
        verdict=verdict,
        endpoint={
            "request": _json({"inputs": facts.example_record, "parameters": {"top_k": 10}}),
            "answer": _json(ENDPOINT_ANSWER),
            "error": _json(ENDPOINT_ERROR, indent=2),
            "request_schema": _json(REQUEST_SCHEMA, indent=2),
            "answer_schema": _json(ANSWER_SCHEMA, indent=2),
        },
    )


def pin_revision(card: str, repo: str, revision: str) -> str:
    """Return the card with its examples loading that repository at that revision.

    A commit cannot name itself: push the files, pin their commit, push the card.
    """
    line = f"repo, revision = {python(repo)}, {python(revision)}"
    return _PINNED.sub(lambda _: line, card)


def render(template: str, **values: Any) -> str:
    """Fill in one of this folder's templates; a missing value is an error, all text is escaped."""
    filled = _environment().get_template(template).render(**values)
    return re.sub(r"\n{3,}", "\n\n", filled).strip() + "\n"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("hub_cards", ""),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=True,
    )
    environment.filters |= {
        "text": text,
        "code": code,
        "code_cell": code_cell,
        "python": python,
        "fenced": fenced,
        "figure": _figure,
        "signed": lambda figure: _figure(figure, "+.3f"),
        "notes": _notes,
        "share": _share,
        "duration": _duration,
        "count": "{:,}".format,
        "megabytes": lambda n_bytes: f"{n_bytes / 10**6:,.0f} MB",
    }
    return environment


def model_metadata(facts: ModelCardFacts) -> Markup:
    """Return a model card's metadata as YAML.

    The model index holds the card's own model, each metric with its interval and, under `args`,
    with the results of every other model under the same protocol: there no leaderboard reads a
    baseline's result as this model's.
    """
    name = one_line(facts.data.name, _LONGEST_NAME)
    results = []
    for metric in facts.metrics:
        others = {
            one_line(row.name, _LONGEST_NAME): {
                "value": _number(row.figures[metric].value),
                **_interval(row.figures[metric]),
            }
            for row in facts.results[1:]
        }
        own = facts.own.figures[metric]
        arguments = {**_interval(own), **({"baselines": others} if others else {})}
        results.append(
            EvalResult(
                task_type="recommendation",
                task_name="Recommendation",
                dataset_type=one_line(facts.data.hub_id) or name.lower().replace(" ", "-"),
                dataset_name=name,
                dataset_split="test",
                metric_type=_metric_type(metric),
                metric_name=metric,
                metric_value=_number(own.value),
                metric_args=arguments or None,
            )
        )
    cost = facts.cost
    emissions: dict[str, Any] = {}
    if cost.emissions is not None:
        emissions["co2_eq_emissions"] = {
            "emissions": _number(cost.emissions),
            "source": "codecarbon",
            "training_type": "training",
            "geographical_location": cost.country,
            "hardware_used": one_line(cost.hardware),
        }
    data = ModelCardData(
        model_name=one_line(facts.name, _LONGEST_NAME),
        license=one_line(facts.licence),
        library_name="transformers",
        pipeline_tag="feature-extraction",
        tags=[*TAGS, one_line(facts.config.mixer)],
        datasets=[one_line(facts.data.hub_id)] if facts.data.hub_id else None,
        metrics=list(dict.fromkeys(map(_metric_type, facts.metrics))),
        eval_results=results,
        **emissions,
    )
    # It stands between two lines of dashes, where nothing is HTML: escaping would change it.
    return Markup(data.to_yaml())


def dataset_card(recipe: Recipe, tables: Tables, *, licence: str = "other") -> str:
    """Return the card of a data set: its three tables, how to load and to train on them."""
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
        metadata=_dataset_metadata(name, licence, files, facts["interactions"]["rows"]),
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


def _dataset_metadata(name: str, licence: str, files: dict[str, str], n_rows: int) -> Markup:
    """Return the card's metadata as YAML; each table is a configuration of its own."""
    configs: list[dict[str, Any]] = [
        {"config_name": table, "data_files": one_line(file)} for table, file in files.items()
    ]
    data = DatasetCardData(
        pretty_name=one_line(name),
        license=one_line(licence),
        task_categories=["other"],
        tags=["recommendation", "tabular", "ftmamba"],
        size_categories=[next((name for limit, name in _SIZES if n_rows < limit), "n>1B")],
        configs=configs,
    )
    return Markup(data.to_yaml())


def _metric_type(metric: str) -> str:
    name = metric.partition("@")[0]
    return METRIC_TYPES.get(name, name.lower())


def _interval(figure: Figure) -> dict[str, Any]:
    if figure.low is None or figure.high is None:
        return {}
    return {"interval_95": [_number(figure.low), _number(figure.high)]}


def _number(value: float) -> float:
    # A numpy float here makes YAML that no reader accepts.
    return round(float(value), 4)


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent, default=str)


def one_line(value: object, longest: int = LONGEST_TEXT) -> str:
    """Return a text on one line, without control characters, cut where it is too long."""
    printable = "".join(c if c.isprintable() else " " for c in str(value))
    line = " ".join(printable.split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def text(value: object) -> Markup:
    """Return prose that stays within its line, its table cell and its tags."""
    if isinstance(value, Markup):
        return value
    escaped = str(escape(one_line(value)))
    escaped = re.sub(r"([\\`*\[\]|~$^])", r"\\\1", escaped)
    # At the start of a line these make headings, lists and rules.
    escaped = re.sub(r"^([#+=-])", r"\\\1", escaped)
    escaped = re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", escaped)
    # Inside a word an underscore is harmless, and legible unescaped.
    escaped = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", escaped)
    return Markup(escaped)


def code(value: object) -> Markup:
    """Return a code span."""
    line = one_line(value) or " "
    fence = _longer_than_any_in(line, least=1)
    gap = " " if line.startswith("`") or line.endswith("`") else ""
    return Markup(_without_comments(f"{fence}{gap}{line}{gap}{fence}"))


def code_cell(value: object) -> Markup:
    """Return a code span for a table's cell, where alone a bar needs a backslash."""
    return Markup(code(value).replace("|", "\\|"))


def python(value: object) -> Markup:
    """Write a value as Python code; texts in double quotes, as formatters want them."""
    literal = _literal(value)
    if len(literal) > LONGEST_LITERAL:
        raise ValueError(
            f"an example on a card must be short, got {len(literal)} characters: {literal[:80]}…; "
            "name a short record as the recipe's examples.record"
        )
    return Markup(_without_comments(literal))


def fenced(value: object, language: str = "") -> Markup:
    """Return a block of code whose fence is longer than any in it."""
    body = str(value).rstrip("\n")
    fence = _longer_than_any_in(body, least=3)
    return Markup(_without_comments(f"{fence}{language}\n{body}\n{fence}"))


def _longer_than_any_in(body: str, *, least: int) -> str:
    """Return so many backticks that none in the body closes what they open."""
    return "`" * max(least, 1 + max(map(len, re.findall("`+", body)), default=0))


def _literal(value: object) -> str:
    if isinstance(value, Mapping):
        pairs = (f"{_literal(key)}: {_literal(each)}" for key, each in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    if isinstance(value, datetime | date):
        value = value.isoformat()
    if isinstance(value, str):
        quoted = json.dumps(value, ensure_ascii=False)
        return quoted.replace("<!--", "\\u003c!--").replace("-->", "--\\u003e")
    if isinstance(value, Decimal):
        value = float(value)
    return "None" if isinstance(value, float) and not math.isfinite(value) else repr(value)


def _without_comments(markdown: str) -> str:
    """Break what could be read as one of the section marks."""
    return markdown.replace("<!--", "<! --").replace("-->", "-- >")


def _figure(figure: Figure, form: str = ".3f") -> str:
    if figure.low is None or figure.high is None:
        return f"{figure.value:{form}}"
    # The space that does not break keeps an interval on one line of a narrow cell.
    return f"{figure.value:{form}} [{figure.low:{form}},\u00a0{figure.high:{form}}]"


def _share(share: float | None) -> str:
    if share is None:
        return "-"
    return "< 0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %"


def _duration(seconds: float) -> str:
    if seconds < 0.1:
        return "< 0.1 s"
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _notes(facts: ColumnFacts) -> str:
    """Return what is particular to a column, beside its name and kind."""
    column = facts.column
    if column.get("popularity_days"):
        days = column["popularity_days"]
        return f"log of 1 + interactions of the last {'day' if days == 1 else f'{days} days'}"
    notes = []
    if facts.middle is not None:
        notes.append(f"90 % from {facts.middle[0]:g} to {facts.middle[1]:g}")
    if column.get("vocabulary_size"):
        notes.append(f"{column['vocabulary_size']} ids")
    if column.get("hash_buckets"):
        notes.append(f"of them {column['hash_buckets']} hash buckets")
    if column["kind"] == "numeric":
        notes.append(f"scaling: {column.get('scaling', 'standard')}")
    if column["kind"] == "categories" and column.get("max_length"):
        notes.append(f"at most {column['max_length']} members")
    if column["kind"] == "vector" and column.get("dimension"):
        notes.append(f"width {column['dimension']}")
    return ", ".join(notes)
