"""The page's own HTML: what it says, and that no foreign text becomes markup."""

from html.parser import HTMLParser

import pytest

from hub_cards.space_page import Item, Point, draw_items, draw_map, draw_message, draw_shares

BAD = "\"'><img src=x onerror=alert(1)></script><b>"
FOUND = {
    "item_key": "i1",
    "title": "A film",
    "score": 3.0,
    "baseline_score": 1.0,
    "standard_error": 0.0,
    "user": {"age": 1.5, "job": -0.5},
    "item": {"year": 1.0, "tags": 0.0001},
    "user_values": {"age": "31", "job": "nurse"},
    "item_values": {"year": "1997", "tags": "none"},
}


class Elements(HTMLParser):
    """Collects the elements and the text of a piece of HTML."""

    def __init__(self, html):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def of_class(self, name):
        return [attrs for _, attrs in self.found if name in (attrs.get("class") or "").split()]


def test_items_are_buttons_in_their_order_with_bars_by_score():
    html = draw_items([Item("a", "First", 4.0), Item("b", "", 1.0)], selected="b")
    elements = Elements(html)
    buttons = elements.of_class("item")
    assert [button["data-key"] for button in buttons] == ["a", "b"]
    assert [button["aria-pressed"] for button in buttons] == ["false", "true"]
    assert "1First" in elements.text
    assert "4.00" in elements.text
    assert "2b" in elements.text
    assert [attrs["style"] for tag, attrs in elements.found if tag == "i"] == [
        "width:100.0%", "width:25.0%"
    ]  # fmt: skip
    for scores in ([-1.0, -3.0], [2.0, 2.0], [0.0]):
        bars = Elements(draw_items([Item("a", "", score) for score in scores])).found
        widths = [float(attrs["style"][6:-1]) for tag, attrs in bars if tag == "i"]
        assert all(0 <= width <= 100 for width in widths)
    assert "Nothing to show." in draw_items([])


def test_shares_go_both_ways_and_the_sum_is_shown():
    elements = Elements(draw_shares(FOUND))
    assert elements.of_class("plus")[0]["style"] == "width:50.0%"
    assert elements.of_class("minus")[0]["style"] == "width:16.7%"
    assert "1.00 with all columns missing +2.00 from the columns = 3.00, the score" in elements.text
    assert float(elements.of_class("sum")[0]["data-gap"]) == pytest.approx(-1e-4)
    assert "standard error" not in elements.text
    assert elements.text.index("age") < elements.text.index("job")
    assert "+0.00" in elements.text
    assert "about the item" in elements.text
    estimated = draw_shares({**FOUND, "standard_error": 0.0312, "item": {}})
    assert "standard error of a share 0.031" in estimated
    assert "about the item" not in estimated


def test_the_map_marks_the_listed_the_near_and_the_chosen():
    points = [Point(key, key.upper(), 0.25, 0.5) for key in "abcd"]
    elements = Elements(draw_map(points, recommended=["b", "a"], near={"c"}, selected="a"))
    kinds = {dot["data-key"]: set(dot["class"].split()) for dot in elements.of_class("dot")}
    assert kinds == {"a": {"dot", "listed", "chosen"}, "b": {"dot", "listed"},
                     "c": {"dot", "near"}, "d": {"dot"}}  # fmt: skip
    assert elements.of_class("dot")[-1]["data-key"] == "a"
    assert elements.of_class("dot")[0]["style"] == "left:25.0%;bottom:50.0%"
    assert sorted(elements.text.strip()) == ["1", "2"]


@pytest.mark.parametrize(
    "html",
    [
        draw_items([Item(BAD, BAD, 1.0)], selected=BAD),
        draw_items([Item(BAD, "", 1.0)]),
        draw_shares({**FOUND, "user": {BAD: 1.0}, "user_values": {BAD: BAD}}),
        draw_map([Point(BAD, BAD, 0.9, 0.1)], recommended=[BAD], near=[], selected=BAD),
        draw_message(BAD),
    ],
)
def test_foreign_text_brings_no_element_and_no_handler(html):
    elements = Elements(html)
    assert not {tag for tag, _ in elements.found} & {"img", "script"}
    for _, attrs in elements.found:
        assert not [name for name in attrs if name.startswith("on")]
    assert not elements.open
