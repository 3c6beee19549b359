import io
import sys

import numpy as np
import pytest
from PIL import Image

from ftmamba.evaluation import Report
from ftmamba.pictures import draw_learning_curves
from hub_cards import render_model_card
from hub_cards.pictures import render_preview

HISTORY = [{"epoch": n, "loss": 7 / n, "score": 0.1 * n} for n in (1, 2, 3)]


def picture(*arguments, **options):
    return Image.open(io.BytesIO(draw_learning_curves(*arguments, **options)))


def test_loss_and_score_are_drawn_beside_each_other():
    both = picture(HISTORY, metric="NDCG@10", best_epoch=3)
    loss = picture([{"epoch": row["epoch"], "loss": row["loss"]} for row in HISTORY])
    assert both.format == "PNG"
    assert both.width == 2 * loss.width
    colours = np.asarray(both.convert("RGB")).reshape(-1, 3)
    for colour in ((0x4F, 0x46, 0xE5), (0xEA, 0x58, 0x0C)):
        assert (colours == colour).all(1).sum() > 200


def test_the_best_epoch_is_marked_and_the_picture_is_the_same_each_time():
    drawn = [draw_learning_curves(HISTORY, best_epoch=best) for best in (2, None, 2)]
    assert drawn[0] == drawn[2] != drawn[1]


def models(*values):
    names = ["FT-Mamba", "FT-Mamba + counts", "popularity"]
    return {
        name: {"metrics": {"NDCG@10": v, "HR@10": v}, "intervals": {"NDCG@10": [v / 2, 2 * v]}}
        for name, v in zip(names, values, strict=False)
    }


def test_a_report_draws_its_models_and_its_learning_curves(tmp_path):
    report = Report({"models": models(0.2, 0.3, 0.1), "training": {"history": HISTORY}})
    report.plot_comparison().save(tmp_path / "models.png")
    colours = np.asarray(Image.open(tmp_path / "models.png").convert("RGB")).reshape(-1, 3)
    bars = [(colours == colour).all(1).sum() for colour in ((0x4F, 0x46, 0xE5), (0xD1, 0xD5, 0xDB))]
    assert bars[0] / bars[1] == pytest.approx(0.5 / 0.1, rel=0.1)
    assert report.plot_learning_curves()._repr_png_() == draw_learning_curves(HISTORY)


def test_a_report_says_why_it_draws_nothing(monkeypatch):
    with pytest.raises(ValueError, match="hold nothing to draw"):
        Report({"models": models(0.2)}).plot_comparison("HR@10")
    monkeypatch.setattr("ftmamba.evaluation.report.find_spec", lambda _: None)
    monkeypatch.setattr("ftmamba.evaluation.report.draw_comparison", lambda *_: None)
    with pytest.raises(ImportError, match=r"pip install 'ftmamba\[plots\]'"):
        Report({"models": models(0.2)}).plot_comparison()


def test_without_epochs_or_matplotlib_there_is_no_picture(monkeypatch):
    assert draw_learning_curves([]) is None
    assert draw_learning_curves(HISTORY) is not None
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert draw_learning_curves(HISTORY) is None


def test_the_preview_shows_tables_tags_and_pictures_and_loads_nothing(facts, monkeypatch):
    page = render_preview(render_model_card(facts), {"learning_curves.png": b"\x89PNG"})
    assert page.count("<table>") == 9
    assert "<span>feature-extraction</span>" in page
    assert 'src="data:image/png;base64,iVBORw=="' in page
    for absent in ("library_name", "learning_curves.png", "<script", 'src="http'):
        assert absent not in page
    monkeypatch.setitem(sys.modules, "markdown_it", None)
    with pytest.raises(ImportError, match="pip install markdown-it-py"):
        render_preview(render_model_card(facts))
