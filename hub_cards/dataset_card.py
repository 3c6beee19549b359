"""Write the card of a data set: three tables, what is in them, how to load and to train on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import DatasetCardData
from markupsafe import Markup

from hub_cards.card import render
from hub_cards.facts import ColumnFacts
from hub_cards.markdown import one_line

TEMPLATE = "dataset_card.md.jinja"
TAGS = ("recommendation", "tabular", "ftmamba")
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"),
          (10**7, "1M<n<10M"), (10**8, "10M<n<100M"), (10**9, "100M<n<1B"))  # fmt: skip


@dataclass(frozen=True)
class TableFacts:
    """One of the tables of users and items.

    Attributes:
        name: `users` or `items`.
        file: of the table in the repository.
        rows: how many.
        key: the column that names a row.
        title: the column shown beside a recommendation, or empty.
        columns: what the schema declares.
    """

    name: str
    file: str
    rows: int
    key: str
    title: str
    columns: Sequence[ColumnFacts]


@dataclass(frozen=True)
class InteractionFacts:
    """Who took what.

    Attributes:
        file: of the table in the repository.
        rows: how many.
        roles: `user`, `item`, `time` and `weight`, to the column that holds it.
        per_user: interactions of a user: quantiles at 5, 50 and 95 %.
        per_item: the same of an item.
        share_of_top_tenth: of the interactions, that the most popular tenth of the items has.
        period: first and last day; empty without times.
    """

    file: str
    rows: int
    roles: Mapping[str, str]
    per_user: Sequence[float]
    per_item: Sequence[float]
    share_of_top_tenth: float
    period: tuple[str, str] | tuple[()] = ()


@dataclass(frozen=True)
class DatasetCardFacts:
    """All that the card of a data set says.

    Attributes:
        name: for people.
        repo: Hub id that the examples load.
        users: the table of users.
        items: the table of items.
        interactions: the table of interactions.
        schema: the recipe's form of it, as YAML.
        licence: as the Hub spells it; `other` says to read the terms.
        terms: what the licence allows, one sentence.
        citation: BibTeX; empty without.
    """

    name: str
    repo: str
    users: TableFacts
    items: TableFacts
    interactions: InteractionFacts
    schema: str
    licence: str = "other"
    terms: str = ""
    citation: str = ""

    @property
    def density(self) -> float:
        """Interactions over all pairs of a user and an item."""
        return self.interactions.rows / max(1, self.users.rows * self.items.rows)


def render_dataset_card(facts: DatasetCardFacts) -> str:
    """Return the card: metadata in YAML, then Markdown."""
    return render(TEMPLATE, facts=facts, metadata=dataset_metadata(facts))


def dataset_metadata(facts: DatasetCardFacts) -> Markup:
    """Return the card's metadata as YAML; each table is a configuration of its own."""
    files = {
        "users": facts.users.file,
        "items": facts.items.file,
        "interactions": facts.interactions.file,
    }
    configs: list[dict[str, Any]] = [
        {"config_name": name, "data_files": one_line(file)} for name, file in files.items()
    ]
    data = DatasetCardData(
        pretty_name=one_line(facts.name),
        license=one_line(facts.licence),
        task_categories=["other"],
        tags=list(TAGS),
        size_categories=[size_category(facts.interactions.rows)],
        configs=configs,
    )
    return Markup(data.to_yaml())


def size_category(n_rows: int) -> str:
    """Return the Hub's name of a size."""
    return next((name for limit, name in _SIZES if n_rows < limit), "n>1B")
