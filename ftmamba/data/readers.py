"""From wherever a table is to Arrow columns of their declared kinds.

A source is a file, a Hub data set, or a table already in memory.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.feather
import pyarrow.json
import pyarrow.parquet
from datasets import Dataset, DatasetDict, load_dataset
from numpy.typing import NDArray

from ftmamba.data.schema import TIME_UNITS, InteractionSchema
from modeling_ftmamba.configuration_ftmamba import Column
from modeling_ftmamba.encoders import column_texts

Source: TypeAlias = (
    str | Path | pa.Table | pd.DataFrame | Dataset | Mapping[str, Any] | Sequence[Mapping[str, Any]]
)
"""A file, a Hub data set or a table in memory; polars and others too, through Arrow."""

DELIMITERS = (",", "\t", ";", "|")
COMPRESSIONS = (".gz", ".bz2", ".zst")
_JSON_BLOCK_BYTES = 1 << 24
_IN_ORDER = {b"ftmamba.order": b"row"}

MISSING_NUMBERS = ("", "nan", "na", "n/a", "null", "none", "-")
"""Texts that mean a missing number, in lower case; in a text column they are values."""

_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_LARGEST_EXACT_INTEGER = 2**53
_LATEST_SECONDS = 10**11
"""About the year 5138: a larger time is in another unit."""


def read_table(source: Source) -> pa.Table:
    """Read a table.

    CSV carries no types, so all of its columns come as texts ("0001" stays "0001", "NA" stays
    "NA") and the schema decides what they are; an empty field is missing, and a column whose every
    value is written like `5.0` is whole numbers that once had gaps, so `5.0` becomes `5`. The
    other formats bring their own types.

    Args:
        source: a path to .csv, .tsv, .parquet (a file or a folder of them), .jsonl, .json,
            .arrow, or to sequences in a .txt or .inter (see `read_sequences`); the name of a Hub
            data set, `owner/name`, with `:config` and `:config/split` where it has several; or a
            table in memory: pandas (a named index is a column), polars, pyarrow, `datasets`, a
            mapping of columns, a list of records.

    Raises:
        FileNotFoundError: no such file; a near name in its folder is suggested.
        ValueError: the file is no table, or its form is not known.
    """
    if not isinstance(source, str | Path):
        return _from_memory(source)
    path = Path(source).expanduser()
    folder = path.parent
    if not path.exists():
        if isinstance(source, str) and _is_hub_name(source):
            return _read_hub(source)
        if not folder.is_dir():
            raise FileNotFoundError(f"file '{path}' does not exist: there is no folder '{folder}'")
        close = get_close_matches(path.name, sorted(entry.name for entry in folder.iterdir()), n=1)
        hint = f"; did you mean '{folder / close[0]}'?" if close else ""
        raise FileNotFoundError(f"file '{path}' does not exist in folder '{folder}'{hint}")
    if path.is_dir() and not any(path.rglob("*.parquet")):
        raise ValueError(f"folder '{path}' holds no .parquet file; name a file instead")
    form = _form(path)
    if form not in READERS:
        raise ValueError(
            f"file '{path}' has the form {form or 'of no suffix'!r}, which is not known; "
            f"convert it to one of: {', '.join(READERS)}"
        )
    try:
        return READERS[form](path)
    except (pa.ArrowException, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"file '{path}' cannot be read as {form[1:]}: {error}") from error


def _from_memory(source: Any) -> pa.Table:
    """Return a table in memory as Arrow."""
    if isinstance(source, pa.Table):
        return source
    if isinstance(source, Dataset):
        return _from_dataset(source)
    if isinstance(source, Sequence):
        names = dict.fromkeys(name for row in source for name in row)
        source = {name: [row.get(name) for row in source] for name in names}
    if isinstance(source, pd.DataFrame):
        has_names = any(name is not None for name in source.index.names)
        table = pa.Table.from_pandas(source, preserve_index=has_names).replace_schema_metadata()
    elif isinstance(source, Mapping) or hasattr(source, "__arrow_c_stream__"):
        table = pa.table(dict(source) if isinstance(source, Mapping) else source)
    else:
        raise ValueError(
            f"a table must be a path or a table in memory, got {type(source).__name__}; convert it "
            "to pandas, polars, pyarrow, a data set of `datasets` or a list of mappings"
        )
    return table


def _form(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ".parquet" if path.is_dir() else ""


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
    for index, name in enumerate(table.column_names):
        table = table.set_column(index, name, _whole_numbers(table.column(index)))
    return table


def _whole_numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Write `5.0` as `5` where every value of the column is so written."""
    present = column.drop_null()
    for values in (present.slice(0, 1000), present):
        like_float = pc.match_substring_regex(values, r"^-?\d+\.0$")
        if not len(values) or not pc.all(like_float).as_py():
            return column
    return pc.replace_substring_regex(column, r"\.0$", "")


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


def read_sequences(path: Path) -> pa.Table:
    """Read a file of sequences without a header: `user item item ...` or `user item` a line.

    Returns:
        `user_id` and `item_id` of every event in the order of the file, which is the order of each
        user's events: `is_in_order` tells so.

    Raises:
        ValueError: a line without an item, or no line at all.
    """
    # A whole line is one column: no text file holds this delimiter.
    parse = pa.csv.ParseOptions(delimiter="\x1f", quote_char=False, ignore_empty_lines=False)
    read = pa.csv.ReadOptions(column_names=["line"])
    convert = pa.csv.ConvertOptions(column_types={"line": pa.string()})
    try:
        lines = pa.csv.read_csv(path, read, parse, convert).column("line")
    except pa.ArrowInvalid as error:
        if "Empty CSV" not in str(error):
            raise
        lines = pa.chunked_array([], pa.string())
    words = pc.split_pattern_regex(pc.utf8_trim_whitespace(lines), r"\s+")
    counts = pc.list_value_length(words)
    is_alone = pc.and_(pc.equal(counts, 1), pc.not_equal(pc.list_element(words, 0), ""))
    if pc.any(is_alone).as_py():
        row = first_row(is_alone)
        raise ValueError(
            f"file '{path}', line {row}: a user must be followed by at least one item, "
            f"got {lines[row - 1].as_py()!r} alone; complete or remove the line"
        )
    words = words.filter(pc.greater(counts, 1))
    if not len(words):
        raise ValueError(f"file '{path}' is empty; each line must hold a user and its items")
    chunks = [
        (pc.list_element(chunk, 0).take(pc.list_parent_indices(items)), pc.list_flatten(items))
        for chunk in words.chunks
        for items in [pc.list_slice(chunk, 1)]
    ]
    users, items = map(pa.chunked_array, zip(*chunks, strict=True))
    return pa.table({"user_id": users, "item_id": items}, metadata=_IN_ORDER)


def is_in_order(table: pa.Table) -> bool:
    """Say whether the order of the rows is the order in which they happened."""
    return _IN_ORDER.items() <= (table.schema.metadata or {}).items()


READERS: dict[str, Callable[[Path], pa.Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": pa.parquet.read_table,
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".json": _read_json,
    ".arrow": _read_arrow,
    ".feather": _read_arrow,
    ".txt": read_sequences,
    ".inter": read_sequences,
}
"""How each form of file is read, by its suffix."""


def _from_dataset(dataset: Dataset) -> pa.Table:
    table = dataset.with_format("arrow")[:]
    return table if isinstance(table, pa.Table) else pa.table(table)


def _is_hub_name(source: str) -> bool:
    owner, _, name = source.partition(":")[0].partition("/")
    words_are_names = all(word and not word.startswith((".", "~")) for word in (owner, name))
    return words_are_names and "/" not in name and _form(Path(source)) not in READERS


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


def typed_column(values: pa.ChunkedArray, column: Column, table: str) -> pa.ChunkedArray:
    """Return a raw column as its declared kind.

    Raises:
        ValueError: a value of another kind, with its row (rows count from 1, header apart).
    """
    values = decoded(values)
    if column.kind == "numeric":
        return _whole(numbers(values, column.name, table))
    if column.kind == "timestamp":
        return _moments(values, column.name, table)
    if column.kind == "vector":
        return _vectors(values, column, table)
    where, is_list = _where(column.name, table), _is_list(values.type)
    if column.kind == "categorical" and (is_list or pa.types.is_struct(values.type)):
        raise ValueError(
            f"{where}: kind 'categorical' needs one value a row, the column holds {values.type}; "
            "declare it as 'categories'"
        )
    has_values = values.null_count < len(values)
    if column.kind == "categories" and not is_list and not column.separator and has_values:
        raise ValueError(
            f"{where}: kind 'categories' needs lists, the column holds {values.type}; give the "
            "separator of its members, or declare it as 'categorical'"
        )
    return values


def decoded(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a dictionary-encoded column as its plain values."""
    if pa.types.is_dictionary(values.type):
        return values.cast(values.type.value_type)
    return values


def key_texts(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the text of each key, as `text_of` has it: 5 and 5.0 are both "5", "" is missing."""
    values = decoded(values)
    if is_text(values.type):
        return pc.if_else(pc.equal(values, ""), pa.scalar(None, values.type), values)
    if pa.types.is_integer(values.type):
        return values.cast(pa.string())
    codes, texts = column_texts(values, "a key")
    index = pa.array(codes, mask=codes < 0)
    return pa.chunked_array([pa.array(texts, pa.string()).take(index)])


def is_text(kind: pa.DataType) -> bool:
    """Say whether an Arrow type is a text."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)  # type: ignore[no-any-return]


def numbers(
    values: pa.ChunkedArray,
    name: str,
    table: str,
    *,
    otherwise: str = "declare the column as 'categorical'",
) -> pa.ChunkedArray:
    """Return numbers, texts written like them or truth as float64, nulls where one is missing.

    Raises:
        ValueError: a value is no number, or is infinite; `otherwise` is what to do about it.
    """
    values, where = decoded(values), _where(name, table)
    if is_text(values.type):
        texts = pc.utf8_trim_whitespace(values)
        missing = pc.is_in(pc.utf8_lower(texts), value_set=pa.array(MISSING_NUMBERS, texts.type))
        texts = pc.if_else(missing, pa.scalar(None, texts.type), texts)
        wrong = pc.invert(pc.fill_null(pc.match_substring_regex(texts, _NUMBER), fill_value=True))
        if pc.any(wrong).as_py():
            row = first_row(wrong)
            raise ValueError(
                f"{where}: row {row} is {values[row - 1].as_py()!r}, which is not a number "
                f"({pc.sum(wrong).as_py()} such rows); correct it, or {otherwise}"
            )
        floats = pc.replace_substring_regex(texts, r"^\+", "").cast(pa.float64())
    elif pa.types.is_boolean(values.type):
        floats = values.cast(pa.int8()).cast(pa.float64())
    elif _is_number(values.type) or pa.types.is_null(values.type):
        floats = values.cast(pa.float64(), safe=False)
    else:
        raise ValueError(
            f"{where}: needs numbers, the column holds {values.type}; convert it, or {otherwise}"
        )
    infinite = pc.fill_null(pc.is_inf(floats), fill_value=False)
    if pc.any(infinite).as_py():
        row = first_row(infinite)
        raise ValueError(
            f"{where}: row {row} is {floats[row - 1].as_py()}; a number must be finite, leave it "
            "empty if it is not known"
        )
    return pc.if_else(pc.is_nan(floats), pa.scalar(None, pa.float64()), floats)


def seconds(values: pa.ChunkedArray, schema: InteractionSchema) -> NDArray[np.int64]:
    """Return the time of each interaction in whole UTC seconds since 1970.

    Raises:
        ValueError: a time is missing, no time, or in another unit than the schema says.
    """
    where = _where(schema.time, "interactions")
    moments = _moments(decoded(values), schema.time, "interactions")
    if moments.null_count:
        raise ValueError(
            f"{where}: {moments.null_count} rows have no time, the first is row "
            f"{first_row(moments.is_null())}; fill them in, or leave 'time' out of the schema"
        )
    if pa.types.is_temporal(moments.type):
        if pa.types.is_date(moments.type):
            moments = moments.cast(pa.timestamp("s"))
        plain = moments.cast(pa.timestamp("us", moments.type.tz), safe=False)
        return plain.cast(pa.int64()).to_numpy() // 1_000_000  # type: ignore[no-any-return]
    units = moments.to_numpy()
    whole = np.floor(units / TIME_UNITS[schema.time_unit]).astype(np.int64)
    row = int(np.abs(whole).argmax()) if len(whole) else 0
    if len(whole) and abs(whole[row]) > _LATEST_SECONDS:
        raise ValueError(
            f"{where}: row {row + 1} is {units[row]:.0f}, which is no time in unit "
            f"{schema.time_unit!r}; set time_unit of 'interactions' to one of "
            f"{', '.join(TIME_UNITS)}"
        )
    return whole  # type: ignore[no-any-return]


def parse_moments(texts: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Return ISO texts as UTC timestamps, or None if one of them is no such text."""
    for kind in (pa.timestamp("us"), pa.timestamp("us", "UTC")):
        try:
            return texts.cast(kind).cast(pa.timestamp("us", "UTC"))
        except pa.ArrowInvalid:
            continue
    return None


def _moments(values: pa.ChunkedArray, name: str, table: str) -> pa.ChunkedArray:
    """Return timestamps, dates, or float64 epoch numbers."""
    if pa.types.is_timestamp(values.type) or pa.types.is_date(values.type):
        return values
    if not is_text(values.type):
        return numbers(values, name, table)
    texts = pc.utf8_trim_whitespace(values)
    texts = pc.if_else(pc.equal(texts, ""), pa.scalar(None, texts.type), texts)
    moments = parse_moments(texts)
    if moments is not None:
        return moments
    looks_iso = pc.match_substring_regex(texts, r"^\d{4}-\d{2}-\d{2}")
    if not pc.any(looks_iso).as_py():
        return numbers(values, name, table)
    wrong = pc.invert(pc.fill_null(looks_iso, fill_value=True))
    if pc.any(wrong).as_py():
        row = first_row(wrong)
    else:
        # The first row that cannot be read as the others are, by halving.
        low, high = 0, len(texts)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if parse_moments(texts[:middle]) is None else (middle, high)
        row = low + 1
    raise ValueError(
        f"{_where(name, table)}: row {row} is {values[row - 1].as_py()!r}, which is no time; write "
        "2024-01-31, 2024-01-31 18:05:00 or seconds since 1970, one form for the whole column"
    )


def _vectors(values: pa.ChunkedArray, column: Column, table: str) -> pa.ChunkedArray:
    where = _where(column.name, table)
    if is_text(values.type):
        bare = pc.utf8_trim(values, characters="[]() \t")
        split = pc.split_pattern if column.separator else pc.split_pattern_regex
        try:
            values = split(bare, column.separator or r"[\s,;]+").cast(pa.list_(pa.float32()))
        except pa.ArrowInvalid as error:
            raise ValueError(f"{where}: a text is no list of numbers: {error}") from error
    if not _is_list(values.type) or not _is_number(values.type.value_type):
        raise ValueError(f"{where}: kind 'vector' needs lists of numbers, it holds {values.type}")
    lengths = pc.list_value_length(values)
    sizes = pc.unique(lengths.drop_null()).to_pylist()
    if len(sizes) > 1:
        row = first_row(pc.fill_null(pc.not_equal(lengths, sizes[0]), fill_value=False))
        raise ValueError(
            f"{where}: row {row} has {lengths[row - 1].as_py()} numbers, the first row with a "
            f"vector has {sizes[0]}; all need the same length"
        )
    return values


def _whole(floats: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return float64 as int64 where no value has a fraction."""
    rounded = pc.equal(pc.floor(floats), floats)
    small = pc.less(pc.abs(floats), _LARGEST_EXACT_INTEGER)
    if pc.all(pc.and_(rounded, small)).as_py() and floats.null_count < len(floats):
        return floats.cast(pa.int64())
    return floats


def first_row(mask: pa.ChunkedArray) -> int:
    """Return the number, from 1, of the first row that is true."""
    return int(pc.index(mask, value=True).as_py()) + 1


def _is_number(kind: pa.DataType) -> bool:
    return (  # type: ignore[no-any-return]
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    )


def _is_list(kind: pa.DataType) -> bool:
    return (  # type: ignore[no-any-return]
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _where(name: str, table: str) -> str:
    return f"table {table!r}, column {name!r}"
