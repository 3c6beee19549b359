"""What `python -m ftmamba` can do: one command a file."""

from ftmamba.commands import (
    cards,
    evaluate,
    explain,
    push,
    recommend,
    runs,
    schema,
    stream,
)
from ftmamba.commands.command import Command

COMMANDS: dict[str, Command] = {
    "schema": schema.COMMAND,
    "recommend": recommend.COMMAND,
    "explain": explain.COMMAND,
    "evaluate": evaluate.COMMAND,
    "push": push.COMMAND,
    "card": cards.CARD,
    "dataset-card": cards.DATASET_CARD,
    "runs": runs.COMMAND,
    "space": cards.SPACE,
    "stream": stream.COMMAND,
}

__all__ = ["COMMANDS", "Command"]
