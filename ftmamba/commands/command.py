"""What a command of `python -m ftmamba` is."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        summary: one line for `--help`.
        add_arguments: declares the command's arguments on its parser.
        run: does the work and prints to the standard output; bad input raises.
    """

    summary: str
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], None]
