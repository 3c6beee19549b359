"""`python -m ftmamba schema`: print the schema of three files, to paste into a recipe."""

from argparse import ArgumentParser, Namespace

_HEADER = "Inferred from the files: correct it where it is wrong and paste it into a recipe."


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    for table in ("users", "items", "interactions"):
        parser.add_argument(table, help=f"table of {table}: CSV, TSV, Parquet or JSON lines")


def run(arguments: Namespace) -> None:
    """Print the schema as YAML, what was left out and why above it."""
    from ftmamba.data.schema_inference import infer_schema

    schema, notes = infer_schema(arguments.users, arguments.items, arguments.interactions)
    print(schema.to_yaml((_HEADER, *notes)), end="")
