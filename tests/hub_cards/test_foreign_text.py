"""Titles, columns and values come from people's tables: none of them may become markup."""

import ast
import dataclasses
import re
from datetime import date
from decimal import Decimal

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from hub_cards import render_model_card
from hub_cards.card import code, code_cell, fenced, one_line, python, text
from hub_cards.facts import ColumnFacts, GroupRow, ResultRow
from hub_cards.merge import parts_of, split_metadata
from hub_cards.pictures import render_preview

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "[click](javascript:alert(1))",
    "![x](http://evil.example/pixel.png)",
    "a | b | c\n|---|---|\n| d | e |",
    "`` ` ``` code",
    "```\nend of the fence\n```",
    "---\nlicense: mit\n---",
    "model: {a: [1, 2]} # & *anchor !!python/object:os.system",
    "<!-- ftmamba:end results -->",
    "x\n<!-- ftmamba:begin usage -->\nfree",
    "# heading\n\n## another",
    "- a\n- list",
    "+ a list",
    "1. one",
    "2) two",
    "> quoted",
    "    indented",
    "=== ---",
    "**bold** _it_ ~~gone~~ $$x$$",
    "</details></table><h1>free",
    "{{ 7 * 7 }} {% raw %}",
    "&lt;b&gt; &amp; \\",
    "left\u202etfel\u200b \x00\x1b[31m",
    "\u2028line\u2029paragraph",
    "é 漢字 🎬",
]
KINDS = (
    "link_open", "image", "heading_open", "table_open", "tr_open", "th_open", "td_open", "fence",
    "code_block", "em_open", "strong_open", "s_open", "blockquote_open", "bullet_list_open",
    "ordered_list_open", "list_item_open", "hr", "html_block",
)  # fmt: skip
OURS = re.compile(r"<!-- ftmamba:(begin|end) \w+ -->|</?(details|summary)>")


def hostile_facts(facts, bad):
    column = ColumnFacts({"name": bad, "kind": "categorical", "vocabulary_size": 9}, 0.5, 3)
    rows = [dataclasses.replace(row, name=f"{row.name} {bad}", note=bad) for row in facts.results]
    (groups,) = facts.groups
    group_rows = [*groups.rows, GroupRow(bad, 5, groups.rows[1].own, groups.rows[1].other)]
    return dataclasses.replace(
        facts,
        name=f"A {bad}",
        data=dataclasses.replace(facts.data, name=f"Data {bad}", licence=bad, hub_id=bad),
        options={bad: bad},
        cost=dataclasses.replace(facts.cost, hardware=bad, country=bad),
        versions={bad: bad},
        user_key=bad,
        item_key=bad,
        user_columns=[column],
        item_columns=[column],
        example_record={bad: bad, "list": [bad], "number": 3},
        split=bad,
        protocol=bad,
        results=rows,
        parts={"Cold users": [ResultRow(bad, facts.own.figures)]},
        groups=[dataclasses.replace(groups, column=bad, rows=group_rows, other_name=bad)],
        limits=[bad],
        code={bad: bad},
        licence=bad,
        citation=bad,
    )


def tokens_of(card):
    _, body = split_metadata(card)
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    flat = []
    for token in parser.parse(body):
        flat += [token, *(token.children or [])]
    return flat


@pytest.mark.parametrize("bad", HOSTILE)
def test_foreign_text_brings_no_markup_and_leaves_the_card_whole(facts, bad):
    plain = tokens_of(render_model_card(hostile_facts(facts, "plain words")))
    card = render_model_card(hostile_facts(facts, bad))
    tokens = tokens_of(card)
    html = [token.content for token in tokens if token.type in ("html_block", "html_inline")]
    assert html
    for one in html:
        assert "<" not in OURS.sub("", one)
    for kind in KINDS:
        n_here, n_plain = (sum(t.type == kind for t in some) for some in (tokens, plain))
        assert n_here == n_plain, kind
    # Sections and metadata stay whole.
    head, body = split_metadata(card)
    metadata = yaml.safe_load(head)
    assert metadata["license"] == one_line(bad)
    assert metadata["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.2231
    assert ModelCard(card).data.pipeline_tag == "feature-extraction"
    clean = split_metadata(render_model_card(facts))[1]
    names, expected = ([part.name for part in parts_of(b) if part.name] for b in (body, clean))
    assert names == expected
    # The examples still are Python that holds the text.
    blocks = [t.content for t in tokens if t.type == "fence" and t.info == "python"]
    assert len(blocks) == 2
    for block in blocks:
        (record,) = re.findall(r"^record = (.*)$", block, re.MULTILINE)
        assert ast.parse(block)
        assert ast.literal_eval(record) == {bad: bad, "list": [bad], "number": 3}


@pytest.mark.parametrize("bad", HOSTILE)
def test_the_text_is_legible_in_the_preview(facts, bad):
    page = render_preview(render_model_card(dataclasses.replace(facts, limits=[bad])))
    shown = re.sub(r"<[^>]+>", "", page.split("<main>")[1])
    for entity, char in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        shown = shown.replace(entity, char)
    assert one_line(bad) in shown


def test_a_line_is_one_line_and_not_too_long():
    assert one_line("a\n b\tc\x00d\u202ee") == "a b c d e"
    assert one_line("x" * 400) == "x" * 299 + "…"


def test_words_are_written_as_they_are():
    assert text("user_id of films, 14 days") == "user_id of films, 14 days"
    assert text("_a_ *b*") == r"\_a\_ \*b\*"
    assert code("user_id") == "`user_id`"
    assert code("a`b") == "``a`b``"
    assert code("`a") == "`` `a ``"
    assert code_cell("a|b") == r"`a\|b`"
    assert code("a|b") == "`a|b`"
    assert fenced("x\n````\ny", "json") == "`````json\nx\n````\ny\n`````"


def test_values_are_written_as_python_that_needs_no_import():
    value = {"day": date(2024, 1, 31), "price": Decimal("1.5"), "nan": float("nan"), "none": None}
    assert ast.literal_eval(str(python(value))) == {
        "day": "2024-01-31", "price": 1.5, "nan": None, "none": None
    }  # fmt: skip
