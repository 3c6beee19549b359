"""The harness of `tests.chaos`, with few events."""

import subprocess
import sys
from pathlib import Path

import pytest

from .redis_server import PROGRAM, WHY_NOT

SCENARIOS = ("two", "evict", "trim")


@pytest.mark.skipif(PROGRAM is None, reason=WHY_NOT)
def test_no_event_is_lost_or_doubled_in_silence():
    command = [sys.executable, "-m", "tests.chaos", "--events", "200", "--kills", "2"]
    run = subprocess.run(
        [*command, "--scenario", *SCENARIOS],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    outcomes = dict(line.split(": ", 1) for line in run.stdout.splitlines()[:-1])
    assert sorted(outcomes) == sorted(SCENARIOS)
    for name, words in outcomes.items():
        if name == "trim":
            assert "; told: " in words
        else:
            assert "0 lost, 0 doubled, 0 users differ" in words
