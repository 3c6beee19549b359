"""Serve a Space's folder where this project is not installed: what the Space's machine would do.

python serve.py folder [package ...]      # packages that are not to be found

Run by path, never imported.
"""

import runpy
import sys
from importlib.abc import MetaPathFinder
from itertools import chain
from pathlib import Path

BLOCKED = set(sys.argv[2:])


class OnlyWhatIsLeft(MetaPathFinder):
    """Finds as the given finders do, but nothing of the blocked packages, as if uninstalled."""

    def __init__(self, finders):
        self.finders = finders

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in BLOCKED:
            return None
        specs = (finder.find_spec(fullname, path, target) for finder in self.finders)
        return next((spec for spec in specs if spec is not None), None)

    def find_distributions(self, *arguments, **options):
        finders = [finder for finder in self.finders if hasattr(finder, "find_distributions")]
        return chain.from_iterable(
            finder.find_distributions(*arguments, **options) for finder in finders
        )


sys.meta_path[:] = [OnlyWhatIsLeft(list(sys.meta_path))]
folder = Path(sys.argv[1])
sys.path[0] = str(folder)
runpy.run_path(str(folder / "app.py"), run_name="__main__")
