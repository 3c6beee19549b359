"""What the page asks of a recommender, all of it through the model's own pipeline.

Shapes: I items, E embedding, P items on the map.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import pipeline

MOST_ON_MAP = 1500
MOST_CHOICES = 2000


@dataclass(frozen=True)
class Field:
    """One column of a user's record, as the page asks for it.

    Attributes:
        name: of the column.
        kind: of the column.
        choices: values it knows, the most frequent first; empty where it knows none or too many.
    """

    name: str
    kind: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Item:
    """An item with its score, or its likeness to another."""

    key: str
    title: str
    score: float


@dataclass(frozen=True)
class Point:
    """An item's place on the map, both coordinates between 0 and 1."""

    key: str
    title: str
    x: float
    y: float


class Demo:
    """A recommender loaded once for all visitors.

    Args:
        model: Hub id or folder.
        revision: commit, tag or branch of the Hub; its code runs here.
    """

    def __init__(self, model: str, revision: str | None = None) -> None:
        options: dict[str, Any] = {"model": model, "trust_remote_code": True}
        if revision:
            options["revision"] = revision
        # Transformers types the tasks that it ships; this one comes with the model.
        make: Any = pipeline
        self._pipeline: Any = make("recommendation", **options)
        self._catalogue = self._pipeline.catalogue
        self.items_IE: Tensor = torch.from_numpy(self._catalogue.embeddings)

    @property
    def n_items(self) -> int:
        """How many items there are to recommend."""
        return len(self._catalogue)

    @cached_property
    def fields(self) -> list[Field]:
        """The columns of a user's record, in the model's order."""
        extractor = self._pipeline.feature_extractor
        fields = []
        for column in extractor.columns("user"):
            choices: Sequence[str] = ()
            if column.kind in ("categorical", "categories"):
                choices = extractor.known_values("user", column.name)
            few = tuple(choices) if len(choices) <= MOST_CHOICES else ()
            fields.append(Field(column.name, column.kind, few))
        return fields

    def record(self, values: Sequence[Any]) -> dict[str, Any]:
        """Return the record that the page's inputs say, in the order of the fields.

        Raises:
            ValueError: a vector is no list of numbers.
        """
        given = zip(self.fields, values, strict=True)
        read = {field.name: _value(field, value) for field, value in given}
        return {name: value for name, value in read.items() if value is not None}

    def recommend(self, record: Mapping[str, Any], k: int) -> list[Item]:
        """Return the k best items, best first.

        Raises:
            ValueError: a value in the record is of the wrong kind.
        """
        answers = self._pipeline(dict(record), top_k=min(int(k), self.n_items))
        return [Item(one["item_key"], one["title"], one["score"]) for one in answers]

    def explain(self, record: Mapping[str, Any], item_key: str) -> dict[str, Any]:
        """Return what each column adds to an item's score; see `ftmamba.explanations.explain`."""
        try:
            from ftmamba.explanations import explain
        except ImportError:
            raise ValueError("what each column adds needs `pip install ftmamba`") from None
        pipe = self._pipeline
        parts = (pipe.model, pipe.feature_extractor, pipe.catalogue)
        return explain(*parts, dict(record), item_key).to_dict()

    def item(self, item_key: str) -> Item:
        """Return an item by its key, without a score.

        Raises:
            ValueError: no item has that key.
        """
        row = self._catalogue.row(item_key)
        return Item(item_key, self._catalogue.titles[row], 0.0)

    def nearest(self, item_key: str, k: int) -> list[Item]:
        """Return the k items nearest to one by the cosine of their embeddings, without itself."""
        row = self._catalogue.row(item_key)
        cosines_I = self._directions @ self._directions[row]
        cosines_I[row] = -torch.inf
        best = cosines_I.topk(min(k, self.n_items - 1))
        keys, titles = self._catalogue.keys, self._catalogue.titles
        return [
            Item(keys[other], titles[other], score)
            for other, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def points(self, with_keys: Sequence[str] = ()) -> list[Point]:
        """Return a sample of the items on the map, those named among them."""
        rows = dict.fromkeys(self._sample.tolist())
        rows |= dict.fromkeys(int(self._catalogue.row(key)) for key in with_keys)
        keys, titles = self._catalogue.keys, self._catalogue.titles
        places = self._plane[0].tolist()
        return [Point(keys[row], titles[row], *places[row]) for row in rows]

    @property
    def map_variance(self) -> float:
        """Share of the embeddings' variance that the map's two axes hold."""
        return self._plane[1]

    @cached_property
    def _sample(self) -> Tensor:
        """Rows (P,) that are always on the map, evenly spread over the catalogue."""
        n_shown = min(MOST_ON_MAP, self.n_items)
        return torch.linspace(0, self.n_items - 1, n_shown, dtype=torch.float64).round().long()

    @cached_property
    def _directions(self) -> Tensor:
        return torch.nn.functional.normalize(self.items_IE, dim=1)

    @cached_property
    def _plane(self) -> tuple[Tensor, float]:
        return plane_of(self.items_IE)


def plane_of(items_IE: Tensor) -> tuple[Tensor, float]:
    """Return places (I, 2) in the plane of the two main axes, and their share of the variance.

    Places lie between 0 and 1.
    """
    centred_IE = items_IE - items_IE.mean(0)
    n_axes = min(2, *items_IE.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, _, axes_E2 = torch.pca_lowrank(centred_IE, q=n_axes, center=False)
    places_I2 = centred_IE @ axes_E2
    total = centred_IE.square().sum()
    share = float(places_I2.square().sum() / total) if total > 0 else 1.0
    places_I2 = torch.nn.functional.pad(places_I2, (0, 2 - n_axes))
    low_2, high_2 = places_I2.amin(0), places_I2.amax(0)
    return (places_I2 - low_2) / (high_2 - low_2).clamp(min=1e-12), share


def _value(field: Field, value: Any) -> Any:
    """Return an input's value as the model reads it, None where nothing was given."""
    value = value.strip() if isinstance(value, str) else value
    if value is None or value == "" or value == []:
        return None
    if field.kind != "vector":
        return value
    try:
        return [float(part) for part in str(value).replace(",", " ").split()]
    except ValueError:
        raise ValueError(
            f"{field.name} must be numbers with commas between them, got {value!r}"
        ) from None
