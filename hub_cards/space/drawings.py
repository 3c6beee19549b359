"""What Gradio has no component for, as HTML; every foreign text is escaped."""

from collections.abc import Collection, Mapping, Sequence
from html import escape
from typing import Any

from .engine import Item, Point

TOWERS = {"user": "about the person", "item": "about the item"}
_LEAST_SHARE = 5e-3


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
    """Return bars of what each column adds to the score, and the sum that proves them complete."""
    shares = [share for tower in TOWERS for share in found[tower].values()]
    most = max(map(abs, shares), default=0.0) or 1.0
    parts = "".join(
        f'<h4>{words}</h4><ul class="shares">{_shares_of(found, tower, most)}</ul>'
        for tower, words in TOWERS.items()
        if found[tower]
    )
    total, gap = sum(shares), found["score"] - found["baseline_score"] - sum(shares)
    error = found["standard_error"]
    known_to = f"; a share is known to ±{error:.2g}" if error else ""
    check = (
        f'<p class="sum" data-gap="{gap:.2e}">{found["baseline_score"]:.2f} when nothing is known '
        f"{total:+.2f} from the columns = <b>{found['score']:.2f}</b>, the score"
        f"{known_to}</p>"
    )
    return f'<div class="why">{parts}{check}</div>'


def draw_map(
    points: Sequence[Point], *, recommended: Sequence[str], near: Collection[str], selected: str
) -> str:
    """Return the map: a dot an item, its name on hover; the list's items carry their ranks."""
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
    """Return a text in a box: an error, or that nothing is there."""
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
