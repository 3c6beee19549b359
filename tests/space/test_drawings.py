"""The page's own HTML: what it says, and that no foreign text becomes markup."""

from xml.etree import ElementTree

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


class Drawn:
    """A piece of HTML; it must be XML too, so what is not closed or escaped is an error."""

    def __init__(self, html):
        self.found = list(ElementTree.fromstring(f"<div>{html}</div>").iter())
        self.text = "".join(self.found[0].itertext())

    def of_class(self, name):
        return [one.attrib for one in self.found if name in one.get("class", "").split()]

    def bars(self):
        return [one.get("style") for one in self.found if one.tag == "i"]


def test_items_are_buttons_in_their_order_with_bars_by_score():
    html = draw_items([Item("a", "First", 4.0), Item("b", "", 1.0)], selected="b")
    elements = Drawn(html)
    buttons = elements.of_class("item")
    assert [button["data-key"] for button in buttons] == ["a", "b"]
    assert [button["aria-pressed"] for button in buttons] == ["false", "true"]
    assert "1First" in elements.text
    assert "4.00" in elements.text
    assert "2b" in elements.text
    assert elements.bars() == ["width:100.0%", "width:25.0%"]
    for scores in ([-1.0, -3.0], [2.0, 2.0], [0.0]):
        bars = Drawn(draw_items([Item("a", "", score) for score in scores])).bars()
        assert all(0 <= float(bar[6:-1]) <= 100 for bar in bars)
    assert "Nothing to show." in draw_items([])


def test_shares_go_both_ways_and_the_sum_is_shown():
    elements = Drawn(draw_shares(FOUND))
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
    elements = Drawn(draw_map(points, recommended=["b", "a"], near={"c"}, selected="a"))
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
    elements = Drawn(html)
    assert not {one.tag for one in elements.found} & {"img", "script"}
    for one in elements.found:
        assert not [name for name in one.attrib if name.startswith("on")]
