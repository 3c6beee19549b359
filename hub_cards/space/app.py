"""The page: who are you, what would you like, why, what is like it, and where it all lies."""

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

import gradio as gr

from .drawings import draw_items, draw_map, draw_message, draw_shares
from .engine import Demo, Field

MOST_LISTED, LISTED, N_NEAR = 20, 10, 6
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"]
_MONO = ["ui-monospace", "DejaVu Sans Mono", "monospace"]
_ON_CLICK = """element.addEventListener('click', (event) => {
    const button = event.target.closest('[data-key]');
    if (button) trigger('select', {key: button.dataset.key});
});"""
"""Tells Python which item was clicked: lists and map have their items' keys on their buttons."""

Page = tuple[str, str, str, str, str]
"""List, shares, likenesses and map as HTML, and the key of the item that they are about."""


def main(model: str, *, revision: str = "", example: Mapping[str, Any] | None = None) -> None:
    """Load the model and serve the page until the process ends."""
    demo = Demo(model, revision or None)
    build(demo, name=model, example=example or {}).launch(**look(), ssr_mode=False)


def look() -> dict[str, Any]:
    """Return what `launch` needs for the looks; no font and no script comes from elsewhere."""
    style = (files(__package__) / "style.css").read_text(encoding="utf-8")
    theme = gr.themes.Soft(
        primary_hue="indigo", secondary_hue="indigo", neutral_hue="slate",
        font=_FONTS, font_mono=_MONO,
    )  # fmt: skip
    return {"theme": theme, "css": style, "footer_links": ["gradio"]}


def build(demo: Demo, *, name: str, example: Mapping[str, Any]) -> gr.Blocks:
    """Lay the page out and connect it.

    Args:
        demo: the loaded recommender.
        name: of the model, for the heading.
        example: the record that the page opens with.
    """
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
    """Return the page's parts for what was asked; what cannot be answered is said on the page.

    Args:
        demo: the loaded recommender.
        values: of the inputs, in the order of the fields.
        k: how many items to list.
        key: of the item to explain; empty for the first of the list.
    """
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
        "<h3>Most like it</h3>" + draw_items(near, digits=3),
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
    """Return the component that asks for a column; empty means that it is not known."""
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
        f'<header class="top"><h1>What would they like?</h1><p>Type what is known of a person, '
        f"leave out what is not: <code>{escape(name)}</code> ranks {n_items:,} items for them, "
        "also if it has never seen anybody like them. Click an item to see why it is there.</p>"
        "</header>"
    )


def _map_heading(demo: Demo) -> str:
    return (
        "<h3>Where the items lie</h3><p class='about'>Each dot is an item; near ones appeal to the "
        "same people. <b class='key listed'>1</b> recommended, <b class='key near'></b> like the "
        f"chosen one. The two axes hold {demo.map_variance:.0%} of how the embeddings differ.</p>"
    )
