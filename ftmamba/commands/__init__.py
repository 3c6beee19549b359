"""What `python -m ftmamba` can do: one command a file."""

from ftmamba.commands import (
    card,
    dataset_card,
    evaluate,
    explain,
    push,
    recommend,
    runs,
    schema,
    space,
    stream,
)
from ftmamba.commands.command import Command

COMMANDS: dict[str, Command] = {
    "schema": schema.COMMAND,
    "recommend": recommend.COMMAND,
    "explain": explain.COMMAND,
    "evaluate": evaluate.COMMAND,
    "push": push.COMMAND,
    "card": card.COMMAND,
    "dataset-card": dataset_card.COMMAND,
    "runs": runs.COMMAND,
    "space": space.COMMAND,
    "stream": stream.COMMAND,
}

__all__ = ["COMMANDS", "Command"]
