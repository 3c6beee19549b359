"""Run Python code as somebody would who pastes it, and return what it printed and made.

python run_code.py '{"code": "...", "blocked": [...], "sizes": ["embedding"]}'

Run by path, never imported. Without the blocked packages: torch and transformers are left.
"""

import contextlib
import io
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "travel"))
from bare_process import OnlyWhatIsLeft, refuse_other_machines


def main(order):
    sys.path.pop(0)
    sys.meta_path[:] = [OnlyWhatIsLeft(list(sys.meta_path), order["blocked"])]
    sys.addaudithook(refuse_other_machines)
    names = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(order["code"], "card", "exec"), names)
    sizes = {name: list(names[name].shape) for name in order.get("sizes", ())}
    sys.stdout.write(json.dumps({"printed": printed.getvalue(), "sizes": sizes}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
