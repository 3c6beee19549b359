"""A card as a page of HTML, to look at."""

import base64
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from typing import Any

from huggingface_hub import RepoCard


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
