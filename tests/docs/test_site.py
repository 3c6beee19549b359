"""The site is built strictly: a broken link, a page outside the menu or an unknown name fails."""

import re
from html import unescape
from pathlib import Path

import pytest

import ftmamba
import modeling_ftmamba
from ftmamba.flags import list_options
from modeling_ftmamba.configuration_ftmamba import Column, FTMambaArchitecture, FTMambaConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder))
    build(config)
    monkeypatch.undo()
    return folder


def text_of(page):
    """Return a page without its markup."""
    return unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))


def test_the_reference_has_every_option_of_a_recipe_with_its_flag(site):
    page = (site / "reference/recipe.html").read_text(encoding="utf-8")
    heads = [
        re.findall("<th>(.*?)</th>", head) for head in re.findall("<thead>.*?</thead>", page, re.S)
    ]
    assert heads == [["option", "default", "values", "what it does"]] * 9
    options = list_options()
    assert len(options) >= 75
    for one in options:
        name, flag = one.path[-1], one.flags[0]
        assert f"<td><code>{name}</code></td>" in page
        assert flag == f"--{name}" or f"Flag: <code>{flag}</code>" in page


def test_the_reference_says_default_range_and_what_reads_an_option(site):
    rows = text_of(site / "reference/recipe.html")
    assert re.search(r"\bt\n0\.75\nnumber, 0 to 1\n.*Read by gbce", rows)
    assert re.search(r"seed\nnull\nwhole number or null\n.*Read by random.*--split\.seed", rows)
    assert re.search(r"hub_private\nfalse\ntrue or false\n.*Read only with push_to_hub", rows)


def test_the_reference_has_every_field_of_column_and_model_with_its_meaning(site):
    columns, model = (text_of(site / f"reference/{name}.html") for name in ("columns", "model"))
    for name in Column.__dataclass_fields__:
        assert re.search(rf"^{name}$|\b{name}\b", columns, re.M), name
    own = {*FTMambaArchitecture.__annotations__, *FTMambaConfig.__annotations__}
    for name in own - {"_auto_class", "model_type"}:
        assert re.search(rf"^{name}$", model, re.M), name
    assert "values that occur less often in training count as rare" in columns
    assert "width D of a token" in model
    assert "a second mixer in each layer, over the reversed tokens" in model


def test_the_python_reference_has_every_public_name(site):
    page = (site / "reference/api.html").read_text(encoding="utf-8")
    for module in (ftmamba, modeling_ftmamba):
        assert module.__all__
        for name in module.__all__:
            assert re.search(rf'id="[\w.]+\.{name}"', page), name


def test_the_front_page_is_the_readme_and_its_links_lead_to_pages(site):
    page = (site / "index.html").read_text(encoding="utf-8")
    assert "FT-Mamba" in page
    assert 'href="contributing.html"' in page
    assert (site / "architecture.svg").is_file()
    assert not list(site.rglob("*.py"))
