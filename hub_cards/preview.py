"""A card as a page of HTML, near enough to what the Hub shows."""

import base64
from collections.abc import Mapping
from html import escape
from typing import Any

from huggingface_hub import RepoCard

STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #fff; color: #1f2937;
       font: 15px/1.6 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 860px; margin: 0 auto; padding: 28px 36px 48px; }
h1 { font-size: 28px; line-height: 1.25; margin: 8px 0 16px; }
h2 { font-size: 21px; margin: 36px 0 12px; padding-bottom: 6px; border-bottom: 1px solid #e5e7eb; }
p, ul, table, pre, details { margin: 0 0 14px; }
a { color: #2563eb; text-decoration: none; }
code { font: 12.5px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; background: #f3f4f6;
       padding: 1px 5px; border-radius: 4px; }
pre { background: #f9fafb; border: 1px solid #e5e7eb; border-radius: 8px; padding: 12px 14px;
      overflow-x: auto; }
pre code { background: none; padding: 0; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: 13.5px; }
th, td { border: 1px solid #e5e7eb; padding: 5px 10px; vertical-align: top; }
th { background: #f9fafb; text-align: left; font-weight: 600; }
thead:has(th:empty) { display: none; }
td:first-child { white-space: nowrap; }
img { max-width: 100%; }
summary { cursor: pointer; color: #2563eb; }
.tags { display: flex; flex-wrap: wrap; gap: 6px; margin: 0 0 8px; }
.tags span { font-size: 12px; border: 1px solid #e5e7eb; border-radius: 99px; padding: 1px 10px;
             color: #4b5563; }
"""


def render_preview(card: str, pictures: Mapping[str, bytes] | None = None) -> str:
    """Return a page that shows a card, its pictures inside, without anything from elsewhere.

    Raises:
        ImportError: markdown-it-py is not installed.
    """
    try:
        from markdown_it import MarkdownIt
    except ImportError as error:
        raise ImportError(
            "a preview of a card needs markdown-it-py; pip install markdown-it-py"
        ) from error
    parsed = RepoCard(card, ignore_metadata_errors=True)
    body = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    html = body.render(parsed.text)
    for name, picture in (pictures or {}).items():
        data = base64.b64encode(picture).decode()
        html = html.replace(f'src="{escape(name)}"', f'src="data:image/png;base64,{data}"')
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Preview of a card</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style><main>{_tags(parsed)}{html}</main></html>\n"
    )


def _tags(card: RepoCard) -> str:
    data: dict[str, Any] = card.data.to_dict()  # type: ignore[no-untyped-call]
    names = [data.get("pipeline_tag"), data.get("library_name"), *(data.get("tags") or [])]
    names.append(f"license: {data['license']}" if data.get("license") else None)
    spans = "".join(f"<span>{escape(str(name))}</span>" for name in names if name)
    return f'<div class="tags">{spans}</div>'
