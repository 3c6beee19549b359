"""Write a checkpoint's model card from facts."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, StrictUndefined

TEMPLATE = "model_card.md.jinja"
TAGS = ("ftmamba", "recommendation", "two-tower", "retrieval", "tabular", "mamba")


@dataclass(frozen=True)
class Figure:
    """A metric's mean over the test users, with its confidence interval where there is one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class ResultRow:
    """One model under the card's protocol.

    Attributes:
        name: of the model or baseline.
        figures: metric name, such as "NDCG@10", to its figure.
    """

    name: str
    figures: Mapping[str, Figure]


@dataclass(frozen=True)
class DataFacts:
    """What the model was trained on.

    Attributes:
        name: of the data set, for people.
        n_users: rows of the table of users.
        n_items: rows of the table of items.
        n_interactions: rows that training saw.
        hub_id: of the data set on the Hub, if it is there.
        licence: what the data's terms allow, one sentence.
    """

    name: str
    n_users: int
    n_items: int
    n_interactions: int
    hub_id: str = ""
    licence: str = ""


@dataclass(frozen=True)
class ModelFacts:
    """What the model is, and what it cost.

    Attributes:
        mixer: `mamba` or `attention`.
        n_parameters: of both towers.
        hidden_size: width of a token.
        num_hidden_layers: layers of each tower.
        loss: the objective.
        seed: of the run.
        train_seconds: wall time of training.
        hardware: what it ran on.
    """

    mixer: str
    n_parameters: int
    hidden_size: int
    num_hidden_layers: int
    loss: str
    seed: int
    train_seconds: float
    hardware: str


@dataclass(frozen=True)
class ModelCardFacts:
    """All that a model card says.

    Attributes:
        name: of the model, for people.
        repo: Hub id or folder that the examples load.
        data: what it was trained on.
        model: what it is.
        user_key: column of the users' keys.
        item_key: column of the items' keys.
        user_columns: `Column.to_dict` of each column of the user tower.
        item_columns: the same of the item tower.
        example_record: a raw user record.
        split: how training and test were parted, one sentence.
        protocol: candidates, masking, averaging, one sentence.
        metrics: names in the order of the columns of the table of results.
        results: the model's own row first, then every baseline.
        groups: further tables under the same columns, such as "Cold users", to their rows.
        limits: what the model is not good for, one sentence each.
        revision: commit that the examples pin; empty leaves it out.
        licence: of the weights, as the Hub spells it.
    """

    name: str
    repo: str
    data: DataFacts
    model: ModelFacts
    user_key: str
    item_key: str
    user_columns: Sequence[Mapping[str, Any]]
    item_columns: Sequence[Mapping[str, Any]]
    example_record: Mapping[str, Any]
    split: str
    protocol: str
    metrics: Sequence[str]
    results: Sequence[ResultRow]
    groups: Mapping[str, Sequence[ResultRow]] = field(default_factory=dict)
    limits: Sequence[str] = ()
    revision: str = ""
    licence: str = "apache-2.0"

    def __post_init__(self) -> None:
        if not self.results:
            raise ValueError("a model card needs the model's results, got none; evaluate it first")
        for row in self._all_rows():
            for metric in self.metrics:
                if metric not in row.figures:
                    raise ValueError(
                        f"the results of {row.name!r} lack {metric!r}; "
                        f"they have: {', '.join(row.figures)}"
                    )
                _check_finite(row, metric)

    def _all_rows(self) -> list[ResultRow]:
        return [*self.results, *(row for rows in self.groups.values() for row in rows)]


def render_model_card(facts: ModelCardFacts) -> str:
    """Return the card: metadata in YAML, then Markdown.

    Raises:
        ValueError: a figure is missing or not finite.
    """
    environment = Environment(
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters |= {"cell": _cell, "figure": _figure, "python": _python, "notes": _notes}
    template = (files("hub_cards") / TEMPLATE).read_text(encoding="utf-8")
    text = environment.from_string(template).render(
        facts=facts, metadata=_metadata(facts).to_yaml(), keys_published=_keys_published(facts)
    )
    return text.rstrip() + "\n"


def _metadata(facts: ModelCardFacts) -> ModelCardData:
    results = [
        EvalResult(
            task_type="recommendation",
            task_name="Recommendation",
            dataset_type=facts.data.hub_id or facts.data.name.lower().replace(" ", "-"),
            dataset_name=facts.data.name,
            dataset_split="test",
            metric_type=metric.lower(),
            metric_name=metric,
            # A numpy float here makes YAML that no reader accepts.
            metric_value=round(float(facts.results[0].figures[metric].value), 6),
        )
        for metric in facts.metrics
    ]
    return ModelCardData(
        model_name=facts.name,
        license=facts.licence,
        library_name="transformers",
        pipeline_tag="feature-extraction",
        tags=list(TAGS),
        datasets=[facts.data.hub_id] if facts.data.hub_id else None,
        eval_results=results,
    )


def _keys_published(facts: ModelCardFacts) -> list[str]:
    """Return the keys that are also columns: their vocabulary lists every value of training."""
    names = {column["name"] for column in (*facts.user_columns, *facts.item_columns)}
    return [key for key in (facts.user_key, facts.item_key) if key in names]


def _cell(text: object) -> str:
    """Keep a text inside its table cell."""
    return " ".join(str(text).replace("|", "\\|").split())


def _python(value: object) -> str:
    """Write a value as Python code; texts in double quotes, as formatters want them."""
    if isinstance(value, Mapping):
        pairs = (f"{_python(key)}: {_python(each)}" for key, each in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_python, value)) + "]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _figure(figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return f"{figure.value:.4f}"
    return f"{figure.value:.4f} [{figure.low:.4f}, {figure.high:.4f}]"


def _notes(column: Mapping[str, Any]) -> str:
    """Say what is particular to a column, beside its name and kind."""
    if column.get("popularity_days"):
        return f"log of 1 + interactions in the last {column['popularity_days']} days"
    notes = []
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


def _check_finite(row: ResultRow, metric: str) -> None:
    figure = row.figures[metric]
    for value in (figure.value, figure.low, figure.high):
        if value is not None and not math.isfinite(value):
            raise ValueError(
                f"{metric} of {row.name!r} must be a finite number, got {value!r}; "
                "evaluate again before writing a card"
            )
