"""What `python -m ftmamba` can do: one command a file."""

from ftmamba.commands import evaluate, recommend, schema
from ftmamba.commands.command import Command

COMMANDS: dict[str, Command] = {
    "schema": schema.COMMAND,
    "recommend": recommend.COMMAND,
    "evaluate": evaluate.COMMAND,
}

__all__ = ["COMMANDS", "Command"]
