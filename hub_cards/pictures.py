"""Pictures for a card: its learning curves as PNG, and the card itself as a page of HTML."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from io import BytesIO
from typing import TYPE_CHECKING, Any

from huggingface_hub import RepoCard

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _FAINT, _LOSS, _SCORE = "#374151", "#d1d5db", "#4f46e5", "#ea580c"
_INCHES, _DOTS = (8.0, 2.9), 150


def draw_learning_curves(
    history: Sequence[Mapping[str, float]],
    *,
    metric: str = "validation score",
    best_epoch: int | None = None,
) -> bytes | None:
    """Return a PNG of the loss and, where there is one, the validation score by epoch.

    Returns:
        None without matplotlib, or where there is nothing to draw.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    scored = [row for row in history if "score" in row]
    if not history:
        return None
    n_panels = 1 + bool(scored)
    figure = Figure(figsize=(_INCHES[0] * n_panels / 2, _INCHES[1]), layout="constrained")
    panels = figure.subplots(1, n_panels, squeeze=False, sharex=True)[0]
    _draw(panels[0], history, "loss", colour=_LOSS, title="training loss")
    if scored:
        _draw(panels[1], scored, "score", colour=_SCORE, title=f"{metric} on validation")
    for row in scored:
        if row["epoch"] == best_epoch:
            best = (row["epoch"], row["score"])
            panels[1].plot([best[0]], [best[1]], "o", color=_SCORE, markersize=7)
            panels[1].margins(y=0.2)
            panels[1].annotate(
                f"{row['score']:.4f}", best, xytext=(0, 8), textcoords="offset points",
                ha="right", fontsize=8, color=_INK,
            )  # fmt: skip
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=_DOTS, metadata={"Software": None})
    return picture.getvalue()


def _draw(
    axes: "Axes", rows: Sequence[Mapping[str, float]], name: str, *, colour: str, title: str
) -> None:
    from matplotlib.ticker import MaxNLocator

    marker: dict[str, Any] = {"marker": "o", "markersize": 3.5} if len(rows) <= 40 else {}
    epochs = [row["epoch"] for row in rows]
    axes.plot(epochs, [row[name] for row in rows], color=colour, linewidth=1.8, **marker)
    axes.set_title(title, loc="left", fontsize=10, color=_INK)
    axes.set_xlabel("epoch", fontsize=9, color=_INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=8, color=_FAINT, labelcolor=_INK)
    axes.grid(axis="y", color=_FAINT, linewidth=0.6, alpha=0.7)
    for side in axes.spines.values():
        side.set_visible(False)


def render_preview(card: str, pictures: Mapping[str, bytes] | None = None) -> str:
    """Return a page that shows a card much as the Hub does, its pictures inside."""
    try:
        from markdown_it import MarkdownIt
    except ImportError as error:
        raise ImportError(
            "a preview of a card needs markdown-it-py; pip install markdown-it-py"
        ) from error
    parsed = RepoCard(card, ignore_metadata_errors=True)
    data: dict[str, Any] = parsed.data.to_dict()  # type: ignore[no-untyped-call]
    tags = [data.get("pipeline_tag"), data.get("library_name"), *(data.get("tags") or [])]
    tags.append(f"license: {data['license']}" if data.get("license") else None)
    spans = "".join(f"<span>{escape(str(tag))}</span>" for tag in tags if tag)
    body = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    html = body.render(parsed.text)
    style = (files("hub_cards") / "card_preview.css").read_text(encoding="utf-8")
    for name, picture in (pictures or {}).items():
        encoded = base64.b64encode(picture).decode()
        html = html.replace(f'src="{escape(name)}"', f'src="data:image/png;base64,{encoded}"')
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Preview of a card</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<style>{style}</style><main><div class="tags">{spans}</div>{html}</main></html>\n'
    )
