"""Processes of their own: there the client is imported afresh, and finds the loopback Hub."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def clean_environment(**environment: str) -> dict[str, str]:
    """Return this process's environment without what points a client elsewhere."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "PYTHON"))
        and not name.lower().endswith("_proxy")
    }
    return {**kept, "OMP_NUM_THREADS": "1", **environment}


def run_python(script: Path | str, *arguments: str, **environment: str) -> dict[str, Any]:
    """Run a script, or code after "-c", in a process; return the JSON of its last line."""
    done = run_process([sys.executable, str(script), *arguments], **environment)
    assert done.returncode == 0, done.stderr[-4000:]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def run_process(
    command: list[str], timeout: float = 120, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in a clean environment, in the folder `HF_HOME`."""
    return subprocess.run(
        command,
        env=clean_environment(**environment),
        cwd=environment["HF_HOME"],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
