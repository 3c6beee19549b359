"""Result files: what was measured, on which machine, with which versions."""

import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "transformers", "numpy", "triton", "mambapy", "deeptab", "mamba-ssm")
TELLING_FLAGS = (
    *("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve"),
    *("neon", "bf16"),
)


def environment() -> dict[str, Any]:
    """Describe the machine, the versions, the commit and the day."""
    name, flags = _processor()
    found: dict[str, Any] = {
        "processor": name,
        "flags": [flag for flag in TELLING_FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "memory_gib": round(_memory_bytes() / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["cuda"] = torch.version.cuda
    return found


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result, one line an entry of each list of objects, so that a diff can be read.

    The file is whole at any moment.
    """
    parts = []
    for key, value in result.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            lines = ",\n  ".join(json.dumps(entry) for entry in value)
            parts.append(f" {json.dumps(key)}: [\n  {lines}\n ]")
        else:
            parts.append(f" {json.dumps(key)}: {json.dumps(value)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
    part.replace(path)


def read_result(path: Path) -> dict[str, Any] | None:
    """Return a result, or None where there is none."""
    if not path.exists():
        return None
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def rounded(milliseconds: float) -> float:
    """Keep four digits, which is more than any clock here knows."""
    return float(f"{milliseconds:.4g}")


def _processor() -> tuple[str, set[str]]:
    information = Path("/proc/cpuinfo")
    if not information.exists():
        return platform.processor() or platform.machine(), set()
    text = information.read_text(encoding="utf-8")
    name = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*: (.*)$", text, re.MULTILINE)
    return name[1] if name else platform.machine(), set(flags[1].split() if flags else ())


def _memory_bytes() -> int:
    if not hasattr(os, "sysconf"):
        return 0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """Return the checked-out commit, with `+` where files differ from it."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()
