"""How large the house is: modules, lines, importers, functions and import cycles.

    python -m benchmarks.structure [--folder ANOTHER_CHECKOUT]

Counted is what is installed; tests and benchmarks are counted apart. Imports inside functions
count, so that a cycle cannot hide in one.
"""

import argparse
import ast
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import networkx  # which torch installs

PACKAGES = ("modeling_ftmamba", "ftmamba", "hub_cards")
SCRIPTS = ("train_accelerate.py", "setup.py")


@dataclass(frozen=True)
class Module:
    """One Python file of the product.

    Attributes:
        path: relative to the checkout.
        lines: of its text.
        functions: defined in it, methods included.
        body_lines: of each function, without its docstring.
        imports: paths of the product's modules that it imports.
    """

    path: str
    lines: int
    functions: int
    body_lines: tuple[int, ...]
    imports: frozenset[str]


def read_modules(root: Path) -> dict[str, Module]:
    """Return every module of the product by its path."""
    files = [path for name in PACKAGES for path in sorted((root / name).rglob("*.py"))]
    files += [root / name for name in SCRIPTS if (root / name).is_file()]
    paths = {path.relative_to(root).as_posix() for path in files}
    modules = {}
    for path in files:
        name = path.relative_to(root).as_posix()
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
        bodies = tuple(_body_lines(node) for node in ast.walk(tree) if _is_function(node))
        imports = frozenset(_imports(tree, name, paths) - {name})
        modules[name] = Module(name, source.count("\n"), len(bodies), bodies, imports)
    return modules


def importers(modules: dict[str, Module]) -> dict[str, set[str]]:
    """Return the modules that import each module; a package's `__init__` is none of them."""
    found: dict[str, set[str]] = {name: set() for name in modules}
    for module in modules.values():
        if not module.path.endswith("__init__.py"):
            for name in module.imports:
                found[name].add(module.path)
    return found


def with_one_importer(modules: dict[str, Module]) -> list[str]:
    """Return the modules that only one other module imports; a package is not a module here."""
    by = importers(modules)
    return sorted(name for name in by if len(by[name]) == 1 and not name.endswith("__init__.py"))


def room_of(path: str) -> str:
    """Return the folder of a module, or the module itself where it stands in a package's top."""
    parts = path.removesuffix(".py").split("/")
    return "/".join(parts[:2]) if parts[0] == "ftmamba" else parts[0]


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of names that import each other, directly or around."""
    groups = networkx.strongly_connected_components(networkx.DiGraph(edges))
    return sorted(sorted(group) for group in groups if len(group) > 1)


def module_edges(modules: dict[str, Module]) -> dict[str, set[str]]:
    """Return what each module imports."""
    return {name: set(module.imports) for name, module in modules.items()}


def room_edges(modules: dict[str, Module]) -> dict[str, set[str]]:
    """Return what each folder imports of the others."""
    edges: dict[str, set[str]] = {}
    for name, module in modules.items():
        room = room_of(name)
        edges.setdefault(room, set()).update({room_of(other) for other in module.imports} - {room})
    return edges


def lines_of(files: Iterable[Path]) -> int:
    """Return the number of lines of some files."""
    return sum(path.read_text(encoding="utf-8").count("\n") for path in files)


def report(root: Path) -> str:
    """Return the figures of a checkout, a line each."""
    modules = read_modules(root)
    n_lines = sum(module.lines for module in modules.values())
    n_functions = sum(module.functions for module in modules.values())
    bodies = [lines for module in modules.values() for lines in module.body_lines]
    alone = with_one_importer(modules)
    travelling = [m for name, m in modules.items() if name.startswith("modeling_ftmamba/")]
    travelling = [module for module in travelling if not module.path.endswith("__init__.py")]
    tests = sorted((root / "tests").rglob("*.py"))
    benchmarks = sorted((root / "benchmarks").rglob("*.py"))
    rows = [
        f"modules                      {len(modules)}",
        f"lines                        {n_lines}",
        f"lines of a module, median    {statistics.median(m.lines for m in modules.values()):.0f}",
        f"modules with one importer    {len(alone)} ({len(alone) / len(modules):.0%})",
        f"functions per 1,000 lines    {1000 * n_functions / n_lines:.1f}",
        f"lines of a body, median      {statistics.median(bodies):.0f}",
        f"import cycles                {len(cycles(module_edges(modules)))} of modules, "
        f"{len(cycles(room_edges(modules)))} of folders",
        f"travel with a checkpoint     {len(travelling)} files, "
        f"{sum(module.lines for module in travelling)} lines",
        f"tests                        {len(tests)} files, {lines_of(tests)} lines",
        f"benchmarks                   {len(benchmarks)} files, {lines_of(benchmarks)} lines",
    ]
    return "\n".join(rows)


def _is_function(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def _body_lines(node: ast.AST) -> int:
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    body = node.body[1:] if ast.get_docstring(node) else node.body
    return 0 if not body else (body[-1].end_lineno or 0) - body[0].lineno + 1


def _imports(tree: ast.AST, path: str, paths: set[str]) -> set[str]:
    found: set[str] = set()
    folder = path.split("/")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found |= _module_paths(alias.name.split("."), paths)
        elif isinstance(node, ast.ImportFrom):
            start = folder[: len(folder) - node.level + 1] if node.level else []
            base = start + (node.module.split(".") if node.module else [])
            submodules = [_module_paths([*base, alias.name], paths) for alias in node.names]
            found |= set().union(*submodules) or _module_paths(base, paths)
    return found


def _module_paths(parts: list[str], paths: set[str]) -> set[str]:
    name = "/".join(parts)
    return {f"{name}.py", f"{name}/__init__.py"} & paths


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--list", action="store_true", help="name the modules with one importer")
    arguments = parser.parse_args()
    print(report(arguments.folder))
    if arguments.list:
        modules = read_modules(arguments.folder)
        by = importers(modules)
        print(*(f"{name} <- {min(by[name])}" for name in with_one_importer(modules)), sep="\n")
        for group in [*cycles(module_edges(modules)), *cycles(room_edges(modules))]:
            print("cycle:", *group)


if __name__ == "__main__":
    main()
