"""Share of mutants that the tests kill; a mutant is a module with one small fault.

    python -m benchmarks.mutants                                        # a sample of every module
    python -m benchmarks.mutants ftmamba/evaluation/splits.py --sample 0    # all of one module

A fault turns a comparison, an operator or a condition around, adds one to a number, removes a check
or returns None. Settings (constants of modules, defaults), types and messages have no faults. Each
mutant is tested in a process of its own on a copy of the tree, by the tests of its module. Packages
are imported once and the processes forked, so a mutant takes hardly longer than its tests.
"""

import argparse
import ast
import contextlib
import gc
import importlib
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
COPIED = ("ftmamba", "modeling_ftmamba", "hub_cards", "configuration", "tests", "benchmarks")
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "scipy.sparse", "implicit.cpu.als")

EVALUATION: Mapping[str, Sequence[str]] = {
    "metrics": ("test_metrics.py",),
    "splits": ("test_splits.py",),
    "evaluate": ("test_evaluate.py", "test_inner_products.py"),
    "protocol": ("test_evaluate.py", "test_inner_products.py"),
    "result": ("test_intervals.py",),
    "inner_products": ("test_inner_products.py",),
    "baselines": ("test_baselines.py",),
    "named": ("test_splits.py",),
}
TESTS: Mapping[str, Sequence[str]] = {
    **{
        f"ftmamba/evaluation/{module}.py": [f"tests/evaluation/{name}" for name in names]
        for module, names in EVALUATION.items()
    },
    "ftmamba/data/batches.py": ["tests/data/test_batches.py"],
    "ftmamba/data/histories.py": ["tests/data/test_histories.py"],
    "ftmamba/training/losses.py": ["tests/training/test_losses.py"],
    "ftmamba/training/negatives.py": ["tests/training/test_negatives.py"],
    "ftmamba/training/fused_cross_entropy.py": ["tests/training/test_losses.py"],
}
"""Module -> the tests that must fail on its mutants."""

OPPOSITES: Mapping[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Mod: ast.FloorDiv,
    ast.FloorDiv: ast.Mod, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip

BOUNDS = {
    "np.abs(exact_P - rough_P) > error_U[rows_P]",
    "np.count_nonzero(is_hit_UG) > MOST_HITS * self._best_UK.size",
    "error_U < LARGEST_SCORE * UNIT",
    "highest_UG >= self._threshold_U1",
    "members >= self._threshold_U1[rows]",
    "scores >= self._threshold_U1[rows, 0]",
}
"""Comparisons with bounds that have room to spare: equality may fall either way, so no fault."""


class Mutant(NamedTuple):
    """A module with one fault."""

    line: int
    fault: str
    source: str


class _Swap(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self._old, self._new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self._new if node is self._old else super().generic_visit(node)


def mutants_of(source: str) -> list[Mutant]:
    """Return every mutant of a module."""
    tree = ast.parse(source)
    skipped = {id(part) for node in ast.walk(tree) for part in _without_faults(node)}
    mutants = []
    for node in [one for one in ast.walk(tree) if id(one) not in skipped]:
        for new in _faulty(node):
            ast.copy_location(new, node)
            changed = ast.fix_missing_locations(_Swap(node, new).visit(tree))
            old_line, new_line = (ast.unparse(one).splitlines()[0] for one in (node, new))
            fault = f"{old_line[:70]}  ->  {new_line[:70]}"
            mutants.append(Mutant(getattr(node, "lineno", 0), fault, ast.unparse(changed)))
            _Swap(new, node).visit(tree)
    return mutants


def _without_faults(node: ast.AST) -> Iterator[ast.AST]:
    parts: list[ast.AST | None] = []
    if isinstance(node, ast.Module | ast.ClassDef):
        parts += [one for one in node.body if isinstance(one, ast.Assign | ast.AnnAssign)]
        parts += getattr(node, "decorator_list", [])
    elif isinstance(node, ast.arguments):
        parts += [*node.defaults, *node.kw_defaults]
    elif isinstance(node, ast.FunctionDef):
        parts += [node.returns, *node.decorator_list]
    elif isinstance(node, ast.arg | ast.AnnAssign):
        parts.append(node.annotation)
    elif isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr) or (
        isinstance(node, ast.keyword) and node.arg in ("strict", "dtype")
    ):
        parts.append(node)
    for part in parts:
        if part is not None:
            yield from ast.walk(part)


def _faulty(node: ast.AST) -> Iterator[ast.AST]:
    """Return what may stand in place of a node."""
    if isinstance(node, ast.Compare) and ast.unparse(node) not in BOUNDS:
        for index, operator in enumerate(node.ops):
            ops = [*node.ops[:index], OPPOSITES[type(operator)](), *node.ops[index + 1 :]]
            yield ast.Compare(node.left, ops, node.comparators)
    elif isinstance(node, ast.BinOp) and type(node.op) in OPPOSITES:
        yield ast.BinOp(node.left, OPPOSITES[type(node.op)](), node.right)
    elif isinstance(node, ast.AugAssign) and type(node.op) in OPPOSITES:
        yield ast.AugAssign(node.target, OPPOSITES[type(node.op)](), node.value)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(OPPOSITES[type(node.op)](), node.values)
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.Return) and node.value is not None:
        yield ast.Return(ast.Constant(None))
    elif isinstance(node, ast.If):
        is_check = isinstance(node.body[0], ast.Raise) and not node.orelse
        test = ast.Constant(False) if is_check else ast.UnaryOp(ast.Not(), node.test)
        yield ast.If(test, node.body, node.orelse)


def _run_tests(tree: Path, tests: Sequence[str]) -> None:
    """Run in a forked process; its exit code is 0 if all tests pass."""
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    sys.dont_write_bytecode = True
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    # As little of pytest as will do: plugins and explained assertions take longer than the tests.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    os._exit(pytest.main(["-q", "-x", "--assert=plain", "-p", "no:cacheprovider", *tests]))


def passes(tree: Path, tests: Sequence[str], seconds: float) -> bool:
    """Return whether the tests pass within some seconds."""
    process = multiprocessing.get_context("fork").Process(target=_run_tests, args=(tree, tests))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode == 0


def main() -> int:
    """Print survivors and the share of killed mutants of each module; 1 if it is too small."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("modules", nargs="*", default=list(TESTS), help="by default all")
    parser.add_argument("--sample", type=int, default=40, help="mutants of a module, 0 for all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1800, help="start no mutant after them")
    parser.add_argument("--at_least", type=float, default=0.9, help="share of each module")
    options = parser.parse_args()
    if unknown := set(options.modules) - set(TESTS):
        parser.error(f"no tests are named here for {', '.join(unknown)}")
    for package in PACKAGES:
        with contextlib.suppress(ImportError):
            importlib.import_module(package)
    gc.freeze()
    deadline, is_enough = time.monotonic() + options.seconds, True
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for name in COPIED:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, tree / name, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", tree)
        for module in options.modules:
            started = time.monotonic()
            if not passes(tree, TESTS[module], 600):
                parser.error(f"the tests of {module} fail without a mutant")
            limit = 20 + 10 * (time.monotonic() - started)
            source = (ROOT / module).read_text(encoding="utf-8")
            mutants = mutants_of(source)
            if 0 < options.sample < len(mutants):
                mutants = random.Random(options.seed).sample(mutants, options.sample)
            n_tested, survivors = 0, []
            for mutant in mutants:
                if time.monotonic() > deadline:
                    break
                (tree / module).write_text(mutant.source, encoding="utf-8")
                n_tested += 1
                survivors += [mutant] if passes(tree, TESTS[module], limit) else []
            (tree / module).write_text(source, encoding="utf-8")
            for line, fault, _ in sorted(survivors):
                print(f"  {module}:{line}: {fault}")
            share = 1 - len(survivors) / max(1, n_tested)
            is_enough &= n_tested > 0 and share >= options.at_least
            print(f"{module}: {share:.0%} of {n_tested} mutants killed", flush=True)
    return 0 if is_enough else 1


if __name__ == "__main__":
    sys.exit(main())
