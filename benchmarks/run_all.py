"""Every benchmark of speed, one after the other, each in a process of its own.

    python -m benchmarks.run_all             # into docs/performance/, then docs/performance.md
    python -m benchmarks.run_all --quick     # three minutes, into runs/performance/
    python -m benchmarks.run_all --only memory latency

A benchmark that fails is reported at the end and does not stop the others. Quality has its own
program, `quality.py`, and GPUs have `gpu.py`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.speed.results import ROOT, environment, write_result

CHECKPOINT = Path("runs/quickstart")
LONGEST = 3 * 3600


@dataclass(frozen=True)
class Benchmark:
    """A program to run.

    Attributes:
        name: of the result file.
        module: the program.
        options: its command line.
        quick_options: its command line in a quick run; None leaves it out.
        writes_its_result: whether it takes `--output` and `--quick`; else what it prints is kept.
        needs: a path without which it cannot run.
    """

    name: str
    module: str
    options: tuple[str, ...] = ()
    quick_options: tuple[str, ...] | None = ()
    writes_its_result: bool = False
    needs: Path | None = None

    def command(self, output: Path, *, quick: bool) -> list[str]:
        """Return the command line."""
        words = [sys.executable, "-m", f"benchmarks.{self.module}"]
        if not self.writes_its_result:
            return [*words, *((self.quick_options or ()) if quick else self.options)]
        return [*words, "--output", str(output), *(["--quick"] if quick else [])]


BENCHMARKS = (
    Benchmark("towers", "speed.towers", writes_its_result=True),
    Benchmark("memory", "speed.memory", writes_its_result=True),
    Benchmark("scaling", "speed.scaling", writes_its_result=True),
    Benchmark("latency", "speed.latency", writes_its_result=True),
    Benchmark(
        "data_path",
        "data_path",
        quick_options=("--rows", "200000", "--epochs", "3", "--steps", "0"),
    ),
    Benchmark("embedding", "embedding", quick_options=None),
    Benchmark("evaluation", "evaluation", quick_options=None),
    Benchmark("pipeline", "pipeline", quick_options=None),
    Benchmark("streaming", "streaming", quick_options=("--calls", "200")),
    Benchmark("histories", "histories", quick_options=None),
    Benchmark("loading", "loading", quick_options=("--catalogue", "100000", "--rounds", "2")),
    Benchmark(
        "processor",
        "processor",
        options=("--runs", "5"),
        quick_options=("--rows", "20000", "--runs", "2"),
    ),
    Benchmark(
        "endpoint",
        "endpoint",
        options=(str(CHECKPOINT), "--record", '{"age": 31}'),
        quick_options=None,
        needs=CHECKPOINT,
    ),
    Benchmark(
        "recommendation",
        "recommendation",
        options=(str(CHECKPOINT), "--record", '{"age": 31}'),
        quick_options=None,
        needs=CHECKPOINT,
    ),
)


def main() -> None:
    """Run the benchmarks, then write the report of a full run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [benchmark.name for benchmark in BENCHMARKS]
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="*", choices=names, default=names)
    parser.add_argument("--folder", type=Path, help="where the results go")
    options = parser.parse_args()
    folder = options.folder or ROOT / ("runs" if options.quick else "docs")
    problems = {}
    for benchmark in BENCHMARKS:
        left_out = options.quick and benchmark.quick_options is None
        if benchmark.name in options.only and not left_out:
            started = time.perf_counter()
            problem = run(benchmark, folder / "performance", quick=options.quick)
            seconds = time.perf_counter() - started
            print(f"== {benchmark.name}: {problem or 'done'}, {seconds:.0f} s", flush=True)
            if problem:
                problems[benchmark.name] = problem
    write_report(folder)
    if problems:
        sys.exit("\n".join(f"{name}: {problem}" for name, problem in problems.items()))


def run(benchmark: Benchmark, folder: Path, *, quick: bool) -> str:
    """Run one benchmark and keep its result; return what went wrong, or nothing."""
    source = ROOT / "benchmarks" / f"{benchmark.module.replace('.', '/')}.py"
    if not source.exists():
        return f"there is no {source.relative_to(ROOT)}"
    if benchmark.needs is not None and not (ROOT / benchmark.needs).exists():
        return f"it needs {benchmark.needs}; run `make quickstart` first"
    output = (folder / f"{benchmark.name}.json").resolve()
    command = benchmark.command(output, quick=quick)
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=None if benchmark.writes_its_result else subprocess.PIPE,
            text=True,
            check=False,
            timeout=LONGEST,
        )
    except subprocess.TimeoutExpired:
        return f"took longer than {LONGEST} s"
    if done.returncode:
        return f"exit code {done.returncode}"
    if not benchmark.writes_its_result:
        print(done.stdout, end="")
        shown = " ".join(["python", *command[1:]])
        keep(benchmark.name, shown, done.stdout, output, quick=quick)
    return ""


def write_report(folder: Path) -> None:
    """Write the document of the results in a folder."""
    words = ["-m", "benchmarks.speed.report", "--folder", str(folder.resolve())]
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True)


def keep(name: str, command: str, printed: str, output: Path, *, quick: bool) -> None:
    """Write what a benchmark printed: its figures where that is JSON, else its lines."""
    try:
        figures = json.loads(printed)
        found = {"figures": figures} if isinstance(figures, dict) else {"output": [printed]}
    except json.JSONDecodeError:
        found = {"output": printed.rstrip().splitlines()}
    header = {"benchmark": name, "quick": quick, "command": command}
    write_result(output, {**header, "environment": environment(), **found})


if __name__ == "__main__":
    main()
