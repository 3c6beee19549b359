"""What `python -m ftmamba` can do; nothing heavy is imported before a command runs."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass

from ftmamba.commands import evaluate, hub, kernels, recommend, runs, schema, serve, stream, train


@dataclass(frozen=True)
class Command:
    """One command: `run` prints to the standard output, and bad input raises."""

    summary: str
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], None]
    flags_of_recipe: bool = False
    """Whether `run` reads the flags itself, as `arguments.rest`."""


COMMANDS = {
    "train": Command("train on your tables, compare, and recommend", train.add_arguments, train.run,
        flags_of_recipe=True),
    "schema": Command(
        "print the inferred schema of three files as YAML", schema.add_arguments, schema.run),
    "recommend": Command("recommend items from a checkpoint",
        recommend.add_recommend_arguments, recommend.run_recommend),
    "explain": Command("show what each column adds to the score of an item for a user",
        recommend.add_explain_arguments, recommend.run_explain),
    "evaluate": Command(
        "repeat a checkpoint's evaluation from its recipe", evaluate.add_arguments, evaluate.run),
    "runs": Command("print the results of several runs in one table", runs.add_arguments, runs.run),
    "push": Command("push a checkpoint to the Hub", hub.add_push_arguments, hub.run_push),
    "card": Command("write a checkpoint's model card again", hub.add_card_arguments, hub.run_card),
    "dataset-card": Command("write the card of a data set from its tables",
        hub.add_dataset_card_arguments, hub.run_dataset_card),
    "space": Command("show a checkpoint's recommendations on a page, as a Space",
        hub.add_space_arguments, hub.run_space),
    "kernels": Command("write the kernels as a repository for the library kernels",
        kernels.add_arguments, kernels.run),
    "stream": Command("read events and keep users' states and embeddings up to date",
        stream.add_arguments, stream.run),
    "serve": Command("answer requests for recommendations over HTTP, and take in events",
        serve.add_arguments, serve.run),
}  # fmt: skip
