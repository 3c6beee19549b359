import sys

import pytest

from hub_cards import render_model_card
from hub_cards.pictures import render_preview


def test_the_preview_shows_tables_tags_and_pictures_and_loads_nothing(facts):
    page = render_preview(render_model_card(facts), {"learning_curves.png": b"\x89PNG"})
    assert page.count("<table>") == 9
    assert "<span>feature-extraction</span>" in page
    assert "library_name" not in page
    assert 'src="data:image/png;base64,iVBORw=="' in page
    assert "learning_curves.png" not in page
    assert "<script" not in page
    assert 'src="http' not in page


def test_without_a_markdown_reader_the_remedy_is_told(facts, monkeypatch):
    monkeypatch.setitem(sys.modules, "markdown_it", None)
    with pytest.raises(ImportError, match="pip install markdown-it-py"):
        render_preview(render_model_card(facts))
