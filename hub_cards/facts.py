"""What a model card says, as plain values: filled from a finished run, written by `card`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Figure:
    """A metric's mean over the test users, with its confidence interval where there is one."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def is_finite(self) -> bool:
        """Whether every number of it is one."""
        numbers = (self.value, self.low, self.high)
        return all(number is None or math.isfinite(number) for number in numbers)


@dataclass(frozen=True)
class ResultRow:
    """One model under the card's protocol.

    Attributes:
        name: of the model or baseline.
        figures: metric name, such as "NDCG@10", to its figure.
        difference: the card's model less this one, paired by user; None in the model's own row.
        seconds: wall time of fitting and scoring.
        note: what was chosen for it, such as tuned options.
    """

    name: str
    figures: Mapping[str, Figure]
    difference: Figure | None = None
    seconds: float | None = None
    note: str = ""


@dataclass(frozen=True)
class GroupRow:
    """The test users who share a value.

    Attributes:
        value: in words.
        n_users: how many.
        own: the model's figure for them.
        other: that of the strongest other model.
    """

    value: str
    n_users: int
    own: Figure
    other: Figure | None = None


@dataclass(frozen=True)
class UserGroups:
    """The test users by the values of one column.

    Attributes:
        column: its name.
        metric: what `own` and `other` of the rows are.
        rows: one a group, the largest first.
        other_name: of the strongest other model; empty without.
    """

    column: str
    metric: str
    rows: Sequence[GroupRow]
    other_name: str = ""

    def below(self, average: float) -> list[GroupRow]:
        """Return the groups whose interval lies below the average of all users."""
        return [row for row in self.rows if row.own.high is not None and row.own.high < average]


@dataclass(frozen=True)
class ColumnFacts:
    """One column of a tower.

    Attributes:
        column: `Column.to_dict` of it.
        missing: share of the table's rows without a value; None where that was not counted.
        distinct: different values in the table.
        middle: where the middle 90 % of its numbers lie.
    """

    column: Mapping[str, Any]
    missing: float | None = None
    distinct: int | None = None
    middle: tuple[float, float] | None = None


@dataclass(frozen=True)
class DataFacts:
    """What the model was trained on.

    Attributes:
        name: of the data set, for people.
        n_users: rows of the table of users.
        n_items: rows of the table of items.
        n_interactions: rows that training saw.
        parts: train, validation and test, to their numbers of interactions.
        period: first and last day of the interactions; empty without times.
        hub_id: of the data set on the Hub, if it is there.
        licence: what the data's terms allow, one sentence.
    """

    name: str
    n_users: int
    n_items: int
    n_interactions: int
    parts: Mapping[str, int] = field(default_factory=dict)
    period: tuple[str, str] | tuple[()] = ()
    hub_id: str = ""
    licence: str = ""


@dataclass(frozen=True)
class ModelFacts:
    """What the model is.

    Attributes:
        mixer: such as `mamba` or `attention`.
        n_parameters: of both towers.
        hidden_size: width of a token.
        num_hidden_layers: layers of each tower.
        embedding_size: width of what a tower returns.
    """

    mixer: str
    n_parameters: int
    hidden_size: int
    num_hidden_layers: int
    embedding_size: int


@dataclass(frozen=True)
class TrainingFacts:
    """How it was trained, and what that cost.

    Attributes:
        options: the recipe's training options, name to value.
        best_epoch: epochs after which validation was best.
        seed: of weights, order, dropout and negatives.
        seeds: further seeds, what for to which.
        versions: package to version.
        seconds: wall time.
        hardware: what it ran on.
        n_processes: how many trained together.
        peak_memory: bytes, of the main process.
        energy: kWh, where it was measured.
        emissions: grams of CO2 equivalents, where they were estimated.
        country: ISO code of the grid behind the emissions.
        curves: file name of the picture of the learning curves; empty without.
    """

    options: Mapping[str, Any]
    best_epoch: int
    seed: int
    seconds: float
    hardware: str
    seeds: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    n_processes: int = 1
    peak_memory: int | None = None
    energy: float | None = None
    emissions: float | None = None
    country: str = ""
    curves: str = ""


@dataclass(frozen=True)
class EndpointFacts:
    """What an inference endpoint is asked and answers, each as JSON.

    Attributes:
        request: an example.
        answer: its answer.
        error: the answer to a request that cannot be answered.
        request_schema: JSON schema of requests.
        answer_schema: JSON schema of answers.
    """

    request: str
    answer: str
    error: str
    request_schema: str
    answer_schema: str


@dataclass(frozen=True)
class ModelCardFacts:
    """All that a model card says.

    Attributes:
        name: of the model, for people.
        repo: Hub id or folder that the examples load.
        data: what it was trained on.
        model: what it is.
        training: how it became so.
        user_key: column of the users' keys.
        item_key: column of the items' keys.
        user_columns: what the user tower reads.
        item_columns: the same of the item tower.
        example_record: a raw user record.
        split: how training and test were parted, one sentence.
        protocol: candidates, masking, averaging, one sentence.
        metrics: names in the order of the columns of the table of results.
        results: the model's own row first, then every baseline.
        parts: further tables under the same columns, such as "Cold users", to their rows.
        groups: the test users by columns that the recipe names.
        limits: what the model is not good for, one sentence each.
        code: file of the remote code to its SHA-256.
        endpoint: of `handler.py`, where there is one.
        with_catalogue: whether the repository holds the items; the examples need them.
        revision: commit, tag or branch that the examples pin.
        licence: of the weights, as the Hub spells it.
        citation: BibTeX of whoever made this model; empty leaves only the paper's.
    """

    name: str
    repo: str
    data: DataFacts
    model: ModelFacts
    training: TrainingFacts
    user_key: str
    item_key: str
    user_columns: Sequence[ColumnFacts]
    item_columns: Sequence[ColumnFacts]
    example_record: Mapping[str, Any]
    split: str
    protocol: str
    metrics: Sequence[str]
    results: Sequence[ResultRow]
    parts: Mapping[str, Sequence[ResultRow]] = field(default_factory=dict)
    groups: Sequence[UserGroups] = ()
    limits: Sequence[str] = ()
    code: Mapping[str, str] = field(default_factory=dict)
    endpoint: EndpointFacts | None = None
    with_catalogue: bool = True
    revision: str = "main"
    licence: str = "apache-2.0"
    citation: str = ""

    def __post_init__(self) -> None:
        if not self.results:
            raise ValueError("a model card needs the model's results, got none; evaluate it first")
        for row in (*self.results, *(row for rows in self.parts.values() for row in rows)):
            for metric in self.metrics:
                _check_figure(row, metric)

    @property
    def own(self) -> ResultRow:
        """The row of the card's own model."""
        return self.results[0]

    @property
    def published_keys(self) -> list[str]:
        """The keys that are also columns: their vocabulary lists every value of training."""
        columns = (*self.user_columns, *self.item_columns)
        names = {each.column["name"] for each in columns}
        return [key for key in (self.user_key, self.item_key) if key in names]


def _check_figure(row: ResultRow, metric: str) -> None:
    if metric not in row.figures:
        raise ValueError(
            f"the results of {row.name!r} lack {metric!r}; they have: {', '.join(row.figures)}"
        )
    figure = row.figures[metric]
    if not figure.is_finite:
        raise ValueError(
            f"{metric} of {row.name!r} must be a finite number, got {figure}; "
            "evaluate again before writing a card"
        )
