"""What each of two processes runs under `accelerate launch`: training with a token of its own.

The Hub knows the ranks apart by their tokens: all but the main one may only read.
"""

import os
import runpy
import sys
from pathlib import Path

from tests.hub.server import READ_TOKEN, TOKEN

os.environ["HF_TOKEN"] = TOKEN if os.environ["RANK"] == "0" else READ_TOKEN
script = runpy.run_path(str(Path(__file__).parents[2] / "train_accelerate.py"))
sys.exit(script["main"](sys.argv[1:]))
