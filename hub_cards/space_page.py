"""The page of a Space: who is it for, what is recommended, why, similar items, a map of all items.

This file travels to the Space and needs gradio, torch and transformers only; explanations are shown
where `ftmamba` is installed too. Shapes: I items, E embedding, P items on the map.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from torch import Tensor
from transformers import pipeline

MOST_LISTED, LISTED, N_NEAR = 20, 10, 6
MOST_ON_MAP, MOST_CHOICES = 1500, 2000
PARTS = {
    "user": "about the user",
    "item": "about the item",
    "counts": "counted of what others chose",
}
_LEAST_SHARE = 5e-3
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"]
_MONO = ["ui-monospace", "DejaVu Sans Mono", "monospace"]
_ON_CLICK = """element.addEventListener('click', (event) => {
    const button = event.target.closest('[data-key]');
    if (button) trigger('select', {key: button.dataset.key});
});"""
"""Sends Python the key of the item that was clicked, in lists and map."""

Page = tuple[str, str, str, str, str]
"""List, shares, similar items and map as HTML, and the key of the item that they are about."""


@dataclass(frozen=True)
class Field:
    """One column of a user's record; `choices` are its known values, the most frequent first.

    They are empty where there are none or too many.
    """

    name: str
    kind: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Item:
    """An item with its score, or its similarity to another."""

    key: str
    title: str
    score: float


@dataclass(frozen=True)
class Point:
    """An item's position on the map, both coordinates between 0 and 1."""

    key: str
    title: str
    x: float
    y: float


class Demo:
    """A recommender loaded once for all visitors."""

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
        """Return the record of the page's inputs, which are in the order of the fields."""
        given = zip(self.fields, values, strict=True)
        read = {field.name: _value(field, value) for field, value in given}
        return {name: value for name, value in read.items() if value is not None}

    def recommend(self, record: Mapping[str, Any], k: int) -> list[Item]:
        """Return the k best items, best first."""
        answers = self._pipeline(dict(record), top_k=min(int(k), self.n_items))
        return [Item(one["item_key"], one["title"], one["score"]) for one in answers]

    def explain(self, record: Mapping[str, Any], item_key: str) -> dict[str, Any]:
        """Return what each column adds to an item's score; see `ftmamba.explanations.explain`."""
        try:
            from ftmamba.explanations import explain
        except ImportError:
            raise ValueError("explanations need `pip install ftmamba`") from None
        pipe = self._pipeline
        parts = (pipe.model, pipe.feature_extractor, pipe.catalogue)
        return explain(*parts, dict(record), item_key).to_dict()

    def item(self, item_key: str) -> Item:
        """Return an item by its key, without a score."""
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
        positions = self._plane[0].tolist()
        return [Point(keys[row], titles[row], *positions[row]) for row in rows]

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
    """Return positions (I, 2) on the two principal axes, and their share of the variance.

    Positions lie between 0 and 1.
    """
    centred_IE = items_IE - items_IE.mean(0)
    n_axes = min(2, *items_IE.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, _, axes_E2 = torch.pca_lowrank(centred_IE, q=n_axes, center=False)
    positions_I2 = centred_IE @ axes_E2
    total = centred_IE.square().sum()
    share = float(positions_I2.square().sum() / total) if total > 0 else 1.0
    positions_I2 = torch.nn.functional.pad(positions_I2, (0, 2 - n_axes))
    low_2, high_2 = positions_I2.amin(0), positions_I2.amax(0)
    return (positions_I2 - low_2) / (high_2 - low_2).clamp(min=1e-12), share


def _value(field: Field, value: Any) -> Any:
    """Return an input's value as the model reads it, None for an empty input."""
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


def draw_items(items: Sequence[Item], *, selected: str = "", digits: int = 2) -> str:
    """Return a ranked list with a bar for each score; each row is a button."""
    if not items:
        return draw_message("Nothing to show.")
    scores = [item.score for item in items]
    low, high = min(*scores, 0.0), max(scores)
    span = (high - low) or 1.0
    rows = "".join(
        f'<li><button type="button" class="item{" chosen" if item.key == selected else ""}" '
        f'data-key="{escape(item.key)}" aria-pressed="{str(item.key == selected).lower()}">'
        f'<span class="rank">{rank}</span><span class="name">{_name(item)}</span>'
        f'<span class="score">{item.score:.{digits}f}</span>'
        f'<span class="bar"><i style="width:{100 * (item.score - low) / span:.1f}%"></i></span>'
        "</button></li>"
        for rank, item in enumerate(items, start=1)
    )
    return f'<ol class="items">{rows}</ol>'


def draw_shares(found: Mapping[str, Any]) -> str:
    """Return bars of what each column adds to the score, and their sum."""
    shares = [share for part in PARTS for share in found.get(part, {}).values()]
    most = max(map(abs, shares), default=0.0) or 1.0
    parts = "".join(
        f'<h4>{words}</h4><ul class="shares">{_shares_of(found, tower, most)}</ul>'
        for tower, words in PARTS.items()
        if found.get(tower)
    )
    total, gap = sum(shares), found["score"] - found["baseline_score"] - sum(shares)
    error = found["standard_error"]
    accuracy = f"; standard error of a share {error:.2g}" if error else ""
    check = (
        f'<p class="sum" data-gap="{gap:.2e}">{found["baseline_score"]:.2f} with all columns '
        f"missing {total:+.2f} from the columns = <b>{found['score']:.2f}</b>, the score"
        f"{accuracy}</p>"
    )
    return f'<div class="why">{parts}{check}</div>'


def draw_map(
    points: Sequence[Point], *, recommended: Sequence[str], near: Collection[str], selected: str
) -> str:
    """Return the map: a dot for each item, its name on hover; listed items show their ranks."""
    ranks = {key: rank for rank, key in enumerate(recommended, start=1)}
    dots = []
    # What is painted last lies on top.
    for point in sorted(points, key=lambda p: (p.key == selected, p.key in ranks, p.key in near)):
        kinds = [
            "listed" if point.key in ranks else "",
            "near" if point.key in near else "",
            "chosen" if point.key == selected else "",
            "right" if point.x > 0.5 else "",
            "high" if point.y > 0.85 else "",
        ]
        dots.append(
            f'<button type="button" class="{" ".join(filter(None, ["dot", *kinds]))}" '
            f'tabindex="-1" data-key="{escape(point.key)}" '
            f'data-name="{escape(point.title or point.key)}" '
            f'style="left:{100 * point.x:.1f}%;bottom:{100 * point.y:.1f}%">'
            f"{ranks.get(point.key, '')}</button>"
        )
    return f'<div class="map"><div class="plane">{"".join(dots)}</div></div>'


def draw_message(text: str) -> str:
    """Return a text in a box."""
    return f'<p class="message" role="status">{escape(text)}</p>'


def _name(item: Item) -> str:
    key = f"<small>{escape(item.key)}</small>" if item.title else ""
    return f"<b>{escape(item.title or item.key)}</b>{key}"


def _shares_of(found: Mapping[str, Any], tower: str, most: float) -> str:
    values: Mapping[str, str] = found[f"{tower}_values"]
    ranked = sorted(found[tower].items(), key=lambda share: -abs(share[1]))
    return "".join(
        f'<li><span class="column">{escape(column)}<small>{escape(str(values.get(column, "")))}'
        f"</small></span>"
        f'<span class="track"><i class="{"plus" if share >= 0 else "minus"}" '
        f'style="width:{50 * abs(share) / most:.1f}%"></i></span>'
        f'<span class="share">{share if abs(share) >= _LEAST_SHARE else 0.0:+.2f}</span></li>'
        for column, share in ranked
    )


def main(model: str, *, revision: str = "", example: Mapping[str, Any] | None = None) -> None:
    """Load the model and serve the page until the process ends."""
    demo = Demo(model, revision or None)
    build(demo, name=model, example=example or {}).launch(**look(), ssr_mode=False)


def look() -> dict[str, Any]:
    """Return the arguments of `launch` for the design; all fonts and scripts are local."""
    style = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    theme = gr.themes.Soft(
        primary_hue="indigo", secondary_hue="indigo", neutral_hue="slate",
        font=_FONTS, font_mono=_MONO,
    )  # fmt: skip
    return {"theme": theme, "css": style, "footer_links": ["gradio"]}


def build(demo: Demo, *, name: str, example: Mapping[str, Any]) -> gr.Blocks:
    """Lay the page out and connect it."""
    page = gr.Blocks(title=f"Recommendations by {name}", analytics_enabled=False)
    with page:
        gr.HTML(_heading(name, demo.n_items))
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                gr.HTML("<h3>Who is it for?</h3>")
                inputs = [_input(field, example.get(field.name)) for field in demo.fields]
                n_listed = gr.Slider(
                    1, min(MOST_LISTED, demo.n_items), min(LISTED, demo.n_items), step=1,
                    label="How many items", elem_id="how-many",
                )  # fmt: skip
                button = gr.Button("Recommend", variant="primary", elem_id="recommend")
            with gr.Column(scale=3, min_width=300):
                listed = _clickable("listed")
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=300):
                why = gr.HTML(elem_id="why")
            with gr.Column(scale=2, min_width=300):
                alike = _clickable("alike")
        on_map = _clickable("map")
        chosen = gr.State("")
        outputs = [listed, why, alike, on_map, chosen]

        def ask(k: int, *values: Any) -> Page:
            return answer(demo, values, k=k, key="")

        def choose(event: gr.EventData, k: int, *values: Any) -> Page:
            return answer(demo, values, k=k, key=str(event.key))

        hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        asked = [n_listed, *inputs]
        page.load(ask, asked, outputs, **hidden)
        button.click(ask, asked, outputs, api_name="recommend", show_progress="hidden")
        gr.on(
            [part.change for part in inputs] + [n_listed.release],
            ask, asked, outputs, trigger_mode="always_last", **hidden,
        )  # fmt: skip
        for part in (listed, alike, on_map):
            part.select(choose, asked, outputs, **hidden)
    return page


def answer(demo: Demo, values: Sequence[Any], *, k: int, key: str) -> Page:
    """Return the page's parts for a request; an error in it becomes a message on the page."""
    try:
        record = demo.record(values)
        items = demo.recommend(record, k)
        key = key or items[0].key
        near = demo.nearest(key, N_NEAR) if demo.n_items > 1 else []
        keys = [item.key for item in items]
        points = demo.points([*keys, *(item.key for item in near), key])
    except ValueError as error:
        return draw_message(str(error)), "", "", "", ""
    return (
        "<h3>Recommended</h3>" + draw_items(items, selected=key),
        _why(demo, record, key),
        "<h3>Similar items</h3>" + draw_items(near, digits=3),
        _map_heading(demo)
        + draw_map(points, recommended=keys, near={item.key for item in near}, selected=key),
        key,
    )


def _why(demo: Demo, record: Mapping[str, Any], key: str) -> str:
    item = demo.item(key)
    heading = f"<h3>Why <q>{escape(item.title or key)}</q>?</h3>"
    try:
        return heading + draw_shares(demo.explain(record, key))
    except ValueError as error:
        return heading + draw_message(str(error))


def _input(field: Field, value: Any) -> Any:
    """Return the component for a column; left empty, the column is missing."""
    label: dict[str, Any] = {"label": field.name}
    if field.kind == "numeric":
        return gr.Number(value=value, **label)
    if field.kind == "categories" and field.choices:
        return gr.Dropdown(
            list(field.choices), value=list(value or []), multiselect=True,
            allow_custom_value=True, **label,
        )  # fmt: skip
    if field.choices:
        choices = [("not known", ""), *((choice, choice) for choice in field.choices)]
        return gr.Dropdown(
            choices, value="" if value is None else str(value), allow_custom_value=True, **label
        )
    hints = {"timestamp": "2024-01-31 18:05", "vector": "0.1, 0.2, 0.3"}
    return gr.Textbox(
        value="" if value is None else str(value), placeholder=hints.get(field.kind), **label
    )


def _clickable(name: str) -> Any:
    return gr.HTML(elem_id=name, js_on_load=_ON_CLICK)


def _heading(name: str, n_items: int) -> str:
    return (
        '<header class="top"><h1>Recommendations</h1><p>Enter what you know about a user and '
        f"leave the rest empty: <code>{escape(name)}</code> ranks {n_items:,} items, also for "
        "new users. Click an item to see why it is recommended and which items are similar.</p>"
        "</header>"
    )


def _map_heading(demo: Demo) -> str:
    return (
        "<h3>Map of the items</h3><p class='about'>Each dot is an item; items close to each other "
        "have similar embeddings. <b class='key listed'>1</b> recommended, <b class='key near'>"
        "</b> similar to the selected item. The two axes hold "
        f"{demo.map_variance:.0%} of the embeddings' variance.</p>"
    )
