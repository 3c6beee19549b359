"""Small tables and a recipe, a process without this project, a browser."""

from tests.pushing.conftest import argv
from tests.space.conftest import make_browser
from tests.travel.conftest import not_bare

__all__ = ["argv", "make_browser", "not_bare"]
