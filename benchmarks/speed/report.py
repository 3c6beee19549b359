"""Write docs/performance.md and its plots from the result files in docs/performance/.

python -m benchmarks.speed.report                    # reads and writes in docs/
python -m benchmarks.speed.report --folder FOLDER    # FOLDER/performance/*.json
"""

import argparse
from pathlib import Path

from .report_gpu import gpu_section
from .report_parts import (
    latency_section,
    machines_section,
    memory_section,
    other_sections,
    scaling_plots,
    scaling_section,
    streaming_plot,
)
from .report_towers import towers_section
from .results import ROOT, read_result

INTRODUCTION = """# Performance

Written by `python -m benchmarks.speed.report` from the files in `docs/performance/`; a test holds
it to them. Figures are ratios of times in one run wherever two things are compared: both run in
turns in one process, a ratio is taken round by round, and **median** [quartiles] of the rounds are
given. Before anything is timed, its outputs and gradients are compared with float64, and what is
wrong by more than 1e-6 (outputs) or 1e-5 (gradients) is not timed.

A tower is 4 layers, state 16, expand 2, from tokens in memory to the normalised last token; every
tower of ours and every FT-Transformer computes the last layer at the last token alone. To train is
one forward and backward, to all parameters and the tokens. One thread is measured in CPU time of
the process, pinned to a core; two threads by the wall clock. A rival that would take too long is
timed on one layer, or on a part of the batch too, and its time multiplied: the tables say where.
✓ reaches the target, ✗ falls short.
"""
REPRODUCE = """## How to repeat it

```bash
make bench                                            # everything, into docs/performance/
python -m benchmarks.run_all --quick                  # three minutes, into runs/performance/
python -m benchmarks.speed.towers --lengths 21        # the towers at some shapes
python -m benchmarks.gpu                              # on a machine with a GPU
python -m benchmarks.speed.report                     # this document
```

DeepTab is measured where it imports: `pip install --no-deps deeptab` and `pip install
scikit-learn` are enough. mambapy: `pip install mambapy`.
"""


def main() -> None:
    """Write the document and the plots."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    for name, text in documents(options.folder / "performance").items():
        (options.folder / name).write_text(text, encoding="utf-8")
        print(options.folder / name)


def documents(results: Path) -> dict[str, str]:
    """Return the document and the plots, by their paths in the folder of documents."""
    found = {path.stem: read_result(path) or {} for path in sorted(results.glob("*.json"))}
    plots = scaling_plots(found.get("scaling"))
    sections = [
        INTRODUCTION,
        towers_section(found.get("towers")),
        memory_section(found.get("memory")),
        scaling_section(found.get("scaling"), plots),
        latency_section(found.get("latency")),
        other_sections(found),
        gpu_section(found.get("gpu")),
        machines_section(found),
        REPRODUCE,
    ]
    plots |= streaming_plot(found.get("streaming"))
    return {"performance.md": "\n".join(sections), **plots}


if __name__ == "__main__":
    main()
