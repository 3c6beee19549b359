"""Peak memory of a training step, each tower in a fresh process.

    python -m benchmarks.speed.memory --output memory.json

What is counted is the process's largest resident size after two steps, less that before them:
tokens, parameters and libraries are there already, gradients and what autograd keeps are not.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from .contenders import FT_TRANSFORMER, OWN, cpu_contenders
from .figures import OURS, is_ft_transformer
from .measure import training_task
from .results import ROOT, environment, rounded, write_result
from .targets import LARGEST_MEMORY_RATIO, MEMORY_SHAPE, N_LAYERS, TARGET_SIZE
from .towers import PLAIN_TORCH

OTHERS = ("transformers", "mlp")


def main() -> None:
    """Measure one tower if one is named, else all, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "runs/performance/memory.json")
    parser.add_argument("--batch", type=int, default=MEMORY_SHAPE.batch)
    parser.add_argument("--length", type=int, default=MEMORY_SHAPE.length)
    parser.add_argument("--quick", action="store_true", help="our towers and the rival alone")
    parser.add_argument("--tower", help="measure this one, in this process, and print megabytes")
    options = parser.parse_args()
    if options.tower:
        print(json.dumps(peak_megabytes(options.tower, options.batch, options.length)))
        return
    result = {
        "benchmark": "memory",
        "quick": options.quick,
        "environment": environment(),
        "batch": options.batch,
        "length": options.length,
        "size": TARGET_SIZE,
        "megabytes": {},
        "left_out": {},
    }
    for name in names(quick=options.quick):
        done = in_fresh_process(name, options.batch, options.length)
        if done.returncode:
            result["left_out"][name] = done.stderr.strip().splitlines()[-1]
        else:
            result["megabytes"][name] = json.loads(done.stdout)
        write_result(options.output, result)
    print(json.dumps({key: result[key] for key in ("megabytes", "left_out")}, indent=1))
    ratio = memory_ratio(result["megabytes"])
    if ratio is None:
        sys.exit("the towers to compare were not measured")
    verdict = "pass" if ratio <= LARGEST_MEMORY_RATIO else "SHORT"
    print(f"{ratio:.2f} times the best FT-Transformer, at most {LARGEST_MEMORY_RATIO}: {verdict}")


def memory_ratio(megabytes: Mapping[str, float]) -> float | None:
    """Return our peak over the thriftiest FT-Transformer's."""
    rivals = [size for name, size in megabytes.items() if is_ft_transformer(name)]
    if OURS not in megabytes or not rivals:
        return None
    return megabytes[OURS] / min(rivals)


def names(*, quick: bool) -> list[str]:
    """Return the towers to measure."""
    contenders = cpu_contenders()
    own = [
        name
        for name, one in contenders.items()
        if one.group == OWN and not (quick and name in PLAIN_TORCH)
    ]
    return [*own, *rival_names(), *(() if quick else OTHERS)]


def rival_names() -> list[str]:
    """Return the variants of the FT-Transformer; the thriftiest is the rival."""
    return [name for name, one in cpu_contenders().items() if one.group == FT_TRANSFORMER]


def in_fresh_process(name: str, batch: int, length: int) -> subprocess.CompletedProcess[str]:
    """Measure one tower in a process of its own."""
    words = ["--tower", name, "--batch", str(batch), "--length", str(length)]
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.speed.memory", *words],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip


def peak_megabytes(name: str, batch: int, length: int) -> float:
    """Run two training steps and return how far the process grew."""
    torch.set_num_threads(1)
    tower = cpu_contenders()[name].build(TARGET_SIZE, N_LAYERS)
    tokens_BLD = torch.randn(batch, length, TARGET_SIZE)
    weight_BD = torch.randn(batch, TARGET_SIZE)
    # A tiny step loads what is loaded late.
    training_task(tower, tokens_BLD[:1], weight_BD[:1]).call()
    task = training_task(tower, tokens_BLD, weight_BD)
    task.before()
    _forget_the_largest()
    floor = _largest_megabytes()
    for _ in range(2):
        task.before()
        task.call()
    return rounded(_largest_megabytes() - floor)


def _forget_the_largest() -> None:
    """Begin anew from the present size: what the imports took at most is no part of a step."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def _largest_megabytes() -> float:
    """Return the largest resident size since; macOS counts it in bytes, Linux in KiB."""
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
