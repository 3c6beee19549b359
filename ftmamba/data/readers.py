"""Reads a table from wherever it is: a file, a Hub data set, or one already in memory."""

import json
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.feather
import pyarrow.json
import pyarrow.parquet
from datasets import Dataset, DatasetDict, load_dataset

Source: TypeAlias = str | Path | pa.Table | Dataset | Mapping[str, Any]

DELIMITERS = (",", "\t", ";", "|")
COMPRESSIONS = (".gz", ".bz2", ".zst")
Reader = Callable[[Path], pa.Table]
_JSON_BLOCK_BYTES = 1 << 24


def read_table(source: Source) -> pa.Table:
    """Read a table.

    CSV carries no types, so all of its columns come as texts ("0001" stays "0001", "NA" stays
    "NA") and the schema decides what they are; an empty field is missing, and a column whose every
    value is written like `5.0` is whole numbers that once had gaps, so `5.0` becomes `5`. The
    other formats bring their own types.

    Args:
        source: a path to .csv, .tsv, .parquet (a file or a folder of them), .jsonl, .json or
            .arrow; the name of a Hub data set, `owner/name`, with `:config` and `:config/split`
            where it has several; or a table in memory.

    Raises:
        FileNotFoundError: no such file; a near name in its folder is suggested.
        ValueError: the file is no table, or its form is not known.
    """
    if isinstance(source, pa.Table):
        return source
    if isinstance(source, Dataset):
        return _from_dataset(source)
    if isinstance(source, Mapping):
        return pa.table(dict(source))
    path = Path(source).expanduser()
    if path.exists():
        return _read_path(path)
    if isinstance(source, str) and _is_hub_name(source):
        return _read_hub(source)
    raise FileNotFoundError(_missing(path))


def _read_path(path: Path) -> pa.Table:
    if path.is_dir() and not any(path.rglob("*.parquet")):
        raise ValueError(f"folder '{path}' holds no .parquet file; name a file instead")
    try:
        return _reader(path)(path)
    except (pa.ArrowException, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"file '{path}' cannot be read as {_form(path)[1:]}: {error}") from error


def _form(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ".parquet" if path.is_dir() else ""


def _reader(path: Path) -> Reader:
    form = _form(path)
    if form not in READERS:
        raise ValueError(
            f"file '{path}' has the form {form or 'of no suffix'!r}, which is not known; "
            f"convert it to one of: {', '.join(READERS)}"
        )
    return READERS[form]


def _read_csv(path: Path) -> pa.Table:
    with pa.input_stream(str(path)) as stream:
        header = stream.read(1 << 16).decode("utf-8", errors="replace").split("\n", 1)[0]
    if not header.strip():
        raise ValueError(f"file '{path}' is empty; its first line must name the columns")
    delimiter = max(DELIMITERS, key=header.count)
    parse = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    names = pa.csv.open_csv(str(path), parse_options=parse).schema.names
    convert = pa.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
    )
    table = pa.csv.read_csv(str(path), parse_options=parse, convert_options=convert)
    table = table.rename_columns([name.strip().strip('"') for name in names])
    for place, name in enumerate(table.column_names):
        table = table.set_column(place, name, _whole_numbers(table.column(place)))
    return table


def _whole_numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Write `5.0` as `5` where every value of the column is so written."""
    present = column.drop_null()
    like_float = pc.match_substring_regex(present.slice(0, 1000), r"^-?\d+\.0$")
    if not len(present) or not pc.all(like_float).as_py():
        return column
    if not pc.all(pc.match_substring_regex(present, r"^-?\d+\.0$")).as_py():
        return column
    return pc.replace_substring_regex(column, r"\.0$", "")


def _read_parquet(path: Path) -> pa.Table:
    return pa.parquet.read_table(path)


def _read_json(path: Path) -> pa.Table:
    with pa.input_stream(str(path)) as stream:
        is_array = stream.read(1 << 10).decode("utf-8-sig", errors="replace").lstrip()[:1] == "["
    if is_array:
        with pa.input_stream(str(path)) as stream:
            return pa.Table.from_pylist(json.loads(stream.read()))
    options = pa.json.ReadOptions(block_size=_JSON_BLOCK_BYTES)
    return pa.json.read_json(str(path), read_options=options)


def _read_arrow(path: Path) -> pa.Table:
    try:
        return pa.feather.read_table(path)
    except pa.ArrowInvalid:
        with pa.memory_map(str(path)) as stream:
            return pa.ipc.open_stream(stream).read_all()


READERS: dict[str, Reader] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".json": _read_json,
    ".arrow": _read_arrow,
    ".feather": _read_arrow,
}
"""How each form of file is read, by its suffix."""


def _from_dataset(dataset: Dataset) -> pa.Table:
    table = dataset.with_format("arrow")[:]
    return table if isinstance(table, pa.Table) else pa.table(table)


def _is_hub_name(source: str) -> bool:
    owner, slash, name = source.partition(":")[0].partition("/")
    words = (owner, name)
    return (
        bool(slash)
        and all(word and not word.startswith((".", "~")) for word in words)
        and "/" not in name
        and _form(Path(source)) not in READERS
    )


def _read_hub(source: str) -> pa.Table:
    name, _, rest = source.partition(":")
    config, _, split = rest.partition("/")
    try:
        found = load_dataset(name, config or None, split=split or None)
    except Exception as error:
        raise FileNotFoundError(
            f"there is no file '{source}', and it cannot be loaded as a Hub data set: {error}"
        ) from error
    if isinstance(found, DatasetDict):
        if len(found) > 1 and "train" not in found:
            raise ValueError(
                f"Hub data set '{source}' has the splits {', '.join(found)}; "
                f"name one: '{name}:{config or 'default'}/{next(iter(found))}'"
            )
        found = found["train"] if "train" in found else next(iter(found.values()))
    return _from_dataset(found)


def _missing(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"file '{path}' does not exist: there is no folder '{folder}'"
    names = sorted(entry.name for entry in folder.iterdir())
    close = get_close_matches(path.name, names, n=1)
    hint = f"; did you mean '{folder / close[0]}'?" if close else ""
    return f"file '{path}' does not exist in folder '{folder}'{hint}"
