"""Going on from a checkpoint, only where the run is the same one."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ftmamba.recipe import TrainingRecipe

FREE_TO_CHANGE = (
    "checkpointing_steps",
    "checkpoints_total_limit",
    "early_stopping_patience",
    "evaluate_every",
    "log_every_steps",
    "report_to",
    "resume_from_checkpoint",
    "stop_after_epochs",
    "with_tracking",
)
"""Options that say when to look, save or stop, and change no step."""


def facts_of_run(
    recipe: TrainingRecipe, *, seed: int, n_processes: int, n_batches: int
) -> dict[str, Any]:
    """Return what shapes every step of a run, as plain values."""
    options = {k: v for k, v in asdict(recipe).items() if k not in FREE_TO_CHANGE}
    return {**options, "seed": seed, "n_processes": n_processes, "batches an epoch": n_batches}


def check_same_run(stored: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raise ValueError naming every fact in which a checkpoint's run differs from this one."""
    differences = [
        f"{name} was {stored.get(name)!r} and is {current.get(name)!r}"
        for name in sorted(stored.keys() | current.keys())
        if stored.get(name) != current.get(name)
    ]
    if differences:
        raise ValueError(
            "the checkpoint is of another run, so resuming would not repeat it: "
            f"{'; '.join(differences)}. Give the same values, or start afresh without "
            "resume_from_checkpoint"
        )
