"""Serve a Space's folder where this project is not installed: what the Space's machine would do.

python serve.py folder [package ...]      # packages that are not to be found

Run by path, never imported.
"""

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "travel"))
from bare_process import OnlyWhatIsLeft

sys.path.pop(0)
sys.meta_path[:] = [OnlyWhatIsLeft(list(sys.meta_path), sys.argv[2:])]
folder = Path(sys.argv[1])
sys.path[0] = str(folder)
runpy.run_path(str(folder / "app.py"), run_name="__main__")
