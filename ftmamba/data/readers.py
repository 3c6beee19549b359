"""From wherever a table is to Arrow columns of their declared kinds.

A source is a file, a Hub data set, or a table already in memory.
"""

import codecs
import csv
import functools
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from charset_normalizer import from_bytes
from datasets import Dataset, DatasetDict, IterableDatasetDict, load_dataset
from numpy.typing import NDArray
from pandas.tseries.api import guess_datetime_format

from ftmamba.data.schema import TIME_UNITS, InteractionSchema
from modeling_ftmamba.configuration_ftmamba import Column
from modeling_ftmamba.encoders import (
    BETWEEN,
    BRACKETS,
    LATEST_SECONDS,
    LIST,
    MISSING_NUMBERS,
    MISSING_TEXTS,
    NUMBER,
    OTHER_TEXT,
    TRUTHS,
    column_texts,
    python_value,
    refuse_periods,
)

logger = logging.getLogger(__name__)

Source: TypeAlias = (
    str | Path | pa.Table | pd.DataFrame | Dataset | Mapping[str, Any] | Iterable[Mapping[str, Any]]
)
"""A file, a Hub data set or a table in memory; polars and others too, through Arrow."""

DELIMITERS = (",", "\t", ";", "|")
_ONE_FOR_TWO = "\x1f"
_OF_MOVIELENS = {
    ("users", 5): ("user_id", "gender", "age", "occupation", "zip"),
    ("movies", 3): ("item_id", "title", "genres"),
}
"""Columns of its files without a header, by their name and number."""
COMPRESSIONS = (".gz", ".bz2", ".zst")
_JSON_BLOCK_BYTES = 1 << 24
_IN_ORDER = {b"ftmamba.order": b"row"}
_TIDY = {b"ftmamba.tidy": b"yes"}

_MISSING = (*MISSING_TEXTS, "NaN", "NaT")
_NUMBER = f"^{NUMBER}$"
_A_NUMBER = r"[+-]?\d[\d.,:/TZ +-]*"
"""Or a time, roughly."""
_CURRENCY = r"(\p{Sc}|EUR|USD|GBP|CHF|SEK|NOK|DKK|PLN|CZK|R\$|US\$|Rs\.?|kr\.?|zł)"
_AROUND_NUMBER = rf"^{_CURRENCY}\s*|\s*({_CURRENCY}|%)$"
"""Signs of currency and percent."""
_BLANKS = " \u00a0\u202f'\u2019"
"""Signs that stand between groups of thousands beside comma and point."""
_COMMA_IS_DECIMAL = (
    rf"^[+-]?(\d+|\d{{1,3}}([.{_BLANKS}]\d{{3}})+),(\d{{1,2}}|\d{{4,}})$|^[+-]?0,\d"
    rf"|[.{_BLANKS}]\d{{3}},\d|^[+-]?\d{{1,3}}(\.\d{{3}}){{2,}}$"
)
"""Texts that only make sense as numbers with a decimal comma."""
_DATE = (
    r"^(\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}|\d{1,2}[ .-]*[A-Za-z]{3,9}[ .,-]+\d{2,4}"
    r"|([A-Za-z]{3} )?[A-Za-z]{3,9}\.? \d{1,2}\b|(19|20)\d{2}(0[1-9]|1[0-2])([0-2]\d|3[01])$)"
)
"""How a text begins that may be a date."""
_RARE_DATES = (
    "%a %b %d %H:%M:%S %z %Y",
    *(
        f"{day}{time}"
        for day in ("%d.%m.%y", "%m/%d/%y", "%d/%m/%y", "%d-%m-%y")
        for time in ("", " %H:%M", " %H:%M:%S")
    ),
)
"""Forms of dates that pandas does not guess."""
_LARGEST_EXACT_INTEGER = 2**53
_SCANNED_BYTES = 1 << 20
_FEW_RAGGED = 0.01
"""At most this share of a file's lines is left out for a wrong number of values."""
_PROBED_ROWS = 1000


def read_table(source: Source) -> pa.Table:
    """Read a table.

    CSV carries no types, so all of its columns come as texts ("0001" stays "0001") and the schema
    decides what they are. Its encoding (UTF-8, UTF-16, else what its bytes look like) and its
    delimiter are found out. The other formats bring their own types; a text of JSON stays one.

    Texts lose blanks around them, and `MISSING_TEXTS` are missing; so is "NA" where a column is
    not of such codes. A column of words for yes and no is true and false, one of lists written as
    texts (`['a', 'b']`) lists.

    Args:
        source: a path to .csv, .tsv, .dat, .parquet (a file or a folder of them), .jsonl, .json,
            .arrow, or to sequences in a .txt or .inter (see `read_sequences`); the name of a Hub
            data set, `owner/name`, with `:config` and `:config/split` where it has several; or a
            table in memory: pandas (a named index is a column), polars, pyarrow, `datasets`, a
            mapping of columns, a list of records, what yields records, such as a generator.

    Raises:
        FileNotFoundError: no such file; a near name in its folder is suggested.
        ValueError: the file is no table, or its form is not known.
    """
    if not isinstance(source, str | Path):
        return _tidy(_from_memory(source))
    path = Path(source).expanduser()
    folder = path.parent
    if not path.exists():
        if isinstance(source, str) and _is_hub_name(source):
            return _tidy(_read_hub(source))
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
        return _tidy(READERS[form](path))
    except (pa.ArrowException, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"file '{path}' cannot be read as {form[1:]}: {error}") from error


def _from_memory(source: Any) -> pa.Table:
    """Return a table in memory as Arrow."""
    if isinstance(source, pa.Table):
        return source
    if isinstance(source, DatasetDict | IterableDatasetDict):
        if len(source) != 1:
            names = " or ".join(f"data[{name!r}]" for name in source)
            raise ValueError(f"a table must be one split, got {len(source)}; give {names}")
        source = next(iter(source.values()))
    if isinstance(source, Dataset):
        return _from_dataset(source)
    if is_rows(source):
        source = _columns_of(list(source))
    if isinstance(source, pd.DataFrame):
        has_names = any(name is not None for name in source.index.names)
        source = source.reset_index() if has_names else source
        source = {str(name): source[name] for name in source.columns}
    if isinstance(source, Mapping):
        table = pa.table({name: _column(values, name) for name, values in source.items()})
    elif hasattr(source, "__arrow_c_stream__"):
        table = pa.table(source)
    else:
        raise ValueError(
            f"a table must be a path or a table in memory, got {type(source).__name__}; convert it "
            "to pandas, polars, pyarrow, a data set of `datasets` or a list of mappings"
        )
    return table


def _columns_of(rows: list[Any]) -> dict[str, Any]:
    for row, record in enumerate(rows):
        if not isinstance(record, Mapping):
            problem = f"must be a mapping of columns to values, got {record!r:.80}"
            raise ValueError(f"row {row} of a table (the first is 0) {problem}")
    names = dict.fromkeys(name for record in rows for name in record)
    return {name: [record.get(name) for record in rows] for name in names}


def is_rows(source: Any) -> bool:
    """Return whether something yields the rows of a table, such as a list or a generator."""
    is_table = isinstance(source, pd.DataFrame | Dataset | Mapping | str | bytes)
    is_table = is_table or (hasattr(source, "__arrow_c_stream__") and hasattr(source, "columns"))
    return isinstance(source, Iterable) and not is_table


def _column(values: Any, name: str) -> Any:
    """Return a column as Arrow; values of several types are texts, such as zip codes in part."""
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise ValueError(
            f"column {name!r} of a table must hold a value for each row, got {values!r:.80}; give "
            "a list of records, [{...}], for one row"
        )
    try:
        return pa.array(values, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, TypeError, OverflowError):
        plain = [_plain(value) for value in values]
    try:
        return pa.array(plain, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, TypeError, OverflowError):
        return _as_texts(plain, f"column {name!r}")


def _plain(value: Any) -> Any:
    """Return a value without NumPy's types, which Arrow knows alone but not inside another one."""
    if isinstance(value, Mapping):
        return {key: _plain(own) for key, own in value.items()}
    if isinstance(value, list | tuple | set | frozenset | np.ndarray):
        return [_plain(own) for own in value]
    return python_value(value)


def _as_texts(values: Any, name: str) -> pa.Array:
    codes, texts = column_texts(values, name)
    return pa.array(texts, pa.string()).take(pa.array(codes, mask=codes < 0))


def _form(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ".parquet" if path.is_dir() else ""


def _tidy(table: pa.Table) -> pa.Table:
    """Return a table whose columns of texts are as `read_table` says, and which says so itself."""
    metadata = table.schema.metadata or {}
    if _TIDY.items() <= metadata.items():
        return table
    refuse_periods(table.schema)
    for index, field in enumerate(table.schema):
        values = decoded(table.column(index))
        if is_text(values.type):
            values = _tidy_texts(values)
        if values is not table.column(index):
            table = table.set_column(index, field.name, values)
    return table.replace_schema_metadata({**metadata, **_TIDY})


def _tidy_texts(values: pa.ChunkedArray) -> pa.ChunkedArray:
    texts, none = pc.utf8_trim_whitespace(values), pa.scalar(None, values.type)
    texts = pc.if_else(_is_one_of(texts, _MISSING), none, texts)
    is_na = pc.fill_null(pc.equal(texts, "NA"), fill_value=False)
    if pc.any(is_na).as_py():
        others = texts.filter(pc.invert(is_na)).drop_null()
        is_code = pc.match_substring_regex(others, "^[A-Z]{2,4}$")
        if not len(others) or pc.mean(is_code.cast(pa.float64())).as_py() < 0.5:
            texts = pc.if_else(is_na, none, texts)
    probe = texts.slice(0, _PROBED_ROWS).drop_null()
    if not len(probe):
        return texts
    if pc.all(_is_one_of(probe, (*TRUTHS,))).as_py():
        words = pc.unique(pc.utf8_lower(texts.drop_null())).to_pylist()
        # Plain 1 and 0 are numbers.
        if {TRUTHS.get(word) for word in words} == {"true", "false"} and {*words} - {"0", "1"}:
            is_true = _is_one_of(texts, [word for word in words if TRUTHS[word] == "true"])
            return pc.if_else(texts.is_null(), pa.scalar(None, pa.bool_()), is_true)
    if pc.all(pc.match_substring_regex(probe, f"^({LIST})$")).as_py():
        bare = pc.replace_substring_regex(texts, BRACKETS, "")
        lists = pc.split_pattern_regex(bare, BETWEEN)
        return pc.if_else(pc.equal(bare, ""), pa.scalar([], lists.type), lists)
    return texts


def _is_one_of(texts: pa.ChunkedArray, words: Sequence[str]) -> pa.ChunkedArray:
    """Say which texts are one of some words, which may be written in capitals or begin with one."""
    forms = {form(word) for word in words for form in (str, str.upper, str.title)}
    return pc.is_in(texts, value_set=pa.array(sorted(forms), texts.type))


def _read_csv(path: Path, spare: str = ",") -> pa.Table:
    """Read a table; `spare` divides its columns if the first line has no usual delimiter."""
    encoding, head = _look_into(path)
    line, *others = head.splitlines()
    skipped = int(line.lower().startswith("sep=") and bool(others))  # as Excel writes it
    line = others[0] if skipped else line
    # Delimiters inside quotes are part of a name.
    bare = re.sub('"[^"]*"', "", line)
    delimiter = max(DELIMITERS, key=bare.count)
    delimiter = delimiter if delimiter in bare else spare
    if "::" in bare:  # as in MovieLens; pyarrow splits at one character
        delimiter, line = _ONE_FOR_TWO, line.replace("::", _ONE_FOR_TWO)
    names = [name.strip().strip('"') for name in next(csv.reader([line], delimiter=delimiter))]
    n_values = sum(re.fullmatch(_A_NUMBER, name) is not None for name in names)
    is_headless = len(names) <= 4 and n_values * 2 >= len(names)
    is_headless = is_headless or (delimiter == _ONE_FOR_TWO and n_values > 0)

    def read(quote: str | bool, *, threads: bool) -> tuple[pa.Table, list[Any]]:
        ragged: list[Any] = []

        def skip(row: Any) -> str:
            ragged.append(row)
            return "skip"

        escape = "\\" if re.search(r'\\"[^\r\n' + re.escape(delimiter) + "]", head) else False
        parse = pa.csv.ParseOptions(
            delimiter=delimiter, quote_char=quote, escape_char=escape,
            newlines_in_values=bool(quote), invalid_row_handler=skip,
        )  # fmt: skip
        opened = _split_by_one if delimiter == _ONE_FOR_TWO else _text_stream
        options = pa.csv.ReadOptions(
            use_threads=threads, skip_rows=skipped, autogenerate_column_names=is_headless
        )
        with opened(path, encoding) as stream:
            fields = pa.csv.open_csv(stream, options, parse).schema.names
        ragged.clear()
        convert = pa.csv.ConvertOptions(
            column_types=dict.fromkeys(fields, pa.string()),
            strings_can_be_null=True,
            null_values=[""],
        )
        with opened(path, encoding) as stream:
            return pa.csv.read_csv(stream, options, parse, convert), ragged

    quote: str | bool = '"'
    table, ragged = read(quote, threads=True)
    if _swallows_rows(table, delimiter):
        plain, plain_ragged = read(False, threads=True)
        if len(plain_ragged) <= len(ragged):
            logger.warning("file '%s': its quotes do not close, so they are read as text", path)
            quote, table, ragged = False, plain, plain_ragged
    if ragged:
        table, ragged = read(quote, threads=False)  # only one thread counts lines
        n_lines = table.num_rows + len(ragged)
        shown = ", ".join(f"row {row.number - 1} is {row.text:.60}" for row in ragged[:3])
        message = (
            f"file '{path}': {len(ragged)} of {n_lines} rows do not have the "
            f"{ragged[0].expected_columns} values that the header names: {shown}"
        )
        if len(ragged) > _FEW_RAGGED * n_lines:
            raise ValueError(
                f"{message}; correct them: a value that holds {delimiter!r} needs quotes around it"
            )
        logger.warning("%s; they are left out", message)
    if is_headless:
        return _with_usual_names(table, path)
    table = _without_names_again(table, path)
    # RecBole writes the type behind a name.
    names = [
        re.sub(r":(token|float|token_seq|float_seq)$", "", name.strip().strip('"'))
        for name in table.column_names
    ]
    table = table.rename_columns(names)
    if "" in names:
        logger.warning(
            "file '%s': columns without a name are left out; name them to use them", path
        )
        table = table.select([index for index, name in enumerate(names) if name])
    return table


def _without_names_again(table: pa.Table, path: Path) -> pa.Table:
    """Leave out rows that repeat the names, as joined files have; refuse a file without names."""
    repeats = [pc.fill_null(pc.equal(table[i], name), fill_value=False)
               for i, name in enumerate(table.column_names)]  # fmt: skip
    is_name_R = functools.reduce(pc.and_, repeats)
    is_value = [pc.any(pc.and_not(one, is_name_R)).as_py() or False for one in repeats]
    others = [name for name, found in zip(table.column_names, is_value, strict=True) if not found]
    if sum(is_value) > 1 and all(re.fullmatch(_A_NUMBER, name.strip()) for name in others):
        raise ValueError(
            f"file '{path}' begins with values, not with the names of its columns: "
            f"{', '.join(map(repr, table.column_names[:3]))} occur below too; add a first line "
            "that names them"
        )
    if n_again := pc.sum(is_name_R).as_py():
        logger.warning(
            "file '%s': %d rows repeat the names of the columns, the first is row %d; they are "
            "left out", path, n_again, first_row(is_name_R),
        )  # fmt: skip
        table = table.filter(pc.invert(is_name_R))
    return table


def _swallows_rows(table: pa.Table, delimiter: str) -> bool:
    """Say whether a text holds a line that looks like a row: the quote before it is no quote."""
    long = [c for c in table.columns if pc.any(pc.match_substring(c, "\n")).as_py()]
    inner = rf"[^\n{re.escape(delimiter)}]*"
    row = rf"\n({inner}{re.escape(delimiter)}){{{table.num_columns - 1}}}{inner}(\n|$)"
    return table.num_columns > 1 and any(
        pc.any(pc.match_substring_regex(column, row)).as_py() for column in long
    )


def _with_usual_names(table: pa.Table, path: Path) -> pa.Table:
    """Name the columns of a file without a header: user, item, then times and ratings."""
    names = [*_OF_MOVIELENS.get((path.stem, table.num_columns), ("user_id", "item_id"))]
    for column in table.columns[len(names) :]:
        names.append("timestamp" if holds_times(column) else "rating")
    names = names[: table.num_columns]
    if len({*names}) < len(names) or len(names) < 2:
        raise ValueError(
            f"file '{path}' begins with values, not with the names of its columns; add a first "
            "line that names them"
        )
    logger.warning(
        "file '%s' begins with values, not with names: its columns are taken as %s; add a first "
        "line of names if that is wrong", path, ", ".join(names),
    )  # fmt: skip
    metadata = _IN_ORDER if len(names) == 2 else None
    return table.rename_columns(names).replace_schema_metadata(metadata)


def _look_into(path: Path) -> tuple[str, str]:
    """Return the encoding and the first lines of a file."""
    encoding = _encoding(path)
    with _text_stream(path, encoding) as stream:
        head = stream.read(1 << 16).decode("utf-8", errors="replace").lstrip("\ufeff \r\n")
    if not head:
        raise ValueError(f"file '{path}' is empty; its first line must name the columns")
    return encoding, head


def _read_text(path: Path) -> pa.Table:
    """Read sequences or, where the lines are those of a table, that."""
    line, *others = [line.strip() for line in _look_into(path)[1].splitlines()[:_PROBED_ROWS]]
    has_names = others and not re.search(r"\d", line) and re.search(r"\d", others[0])
    sizes = {line.count("\t") for line in (line, *others[:-1]) if line}
    # Sequences of one length each would be a table, too: here they have names or times.
    is_table = sizes == {2} or sizes == {3}
    if has_names or is_table or re.search(r"[,;|]|:(token|float)|::", line):
        return _read_csv(path, " ")
    return read_sequences(path)


def _encoding(path: Path) -> str:
    """Return the encoding of a file; "cp1252" stands for UTF-8 mixed with it too."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with pa.input_stream(str(path)) as stream:
        block = stream.read(_SCANNED_BYTES)
        if block[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return "utf-16"
        if b"\0" in block[:2]:
            return "utf-16-le" if block[1] == 0 else "utf-16-be"
        if b"\0" in block:
            raise ValueError(
                f"file '{path}' holds no text; unpack it, or save it as CSV where it was made"
            )
        while block:
            try:
                decoder.decode(block)
            except UnicodeDecodeError:
                break
            block = stream.read(_SCANNED_BYTES)
        else:
            return "utf-8"
    foreign = re.sub(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}", b"", block)
    # In Western texts letters beyond ASCII stand alone, in others side by side.
    n_letters = len(re.findall(rb"[\x80-\xff]", foreign))
    n_neighbours = len(re.findall(rb"[\x80-\xff](?=[\x80-\xff])", foreign))
    best = None
    if n_neighbours > 0.4 * n_letters:
        lines = re.findall(rb"[^\n]*[\x80-\xff][^\n]*\n", block)
        best = from_bytes(b"".join(lines[:500])).best()
    encoding = best.encoding if best else "cp1252"
    logger.warning(
        "file '%s' is not UTF-8, so it is read as %s; save it as UTF-8 if that is wrong",
        path,
        encoding,
    )
    return encoding


def _text_stream(path: Path, encoding: str) -> pa.NativeFile:
    """Open a file, which may be compressed, as UTF-8."""
    stream = pa.input_stream(str(path))
    if encoding == "utf-8":
        return stream
    if encoding == "cp1252":
        # Files put together of several sources hold lines of UTF-8 too.
        codecs.register_error("cp1252", _from_cp1252)
        decode = codecs.getincrementaldecoder("utf-8")("cp1252").decode
    else:
        decode = codecs.getincrementaldecoder(encoding)("replace").decode
    return pa.TransformInputStream(stream, lambda block: decode(block).encode())


def _split_by_one(path: Path, encoding: str) -> pa.NativeFile:
    """Open a file whose columns are divided by `::` with one character in its place."""
    pending = b""

    def replaced(block: Any) -> bytes:
        nonlocal pending
        text = pending + bytes(block)
        pending = b":" if text.endswith(b":") else b""
        return text.removesuffix(pending).replace(b"::", _ONE_FOR_TWO.encode())

    return pa.TransformInputStream(_text_stream(path, encoding), replaced)


def _from_cp1252(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return error.object[error.start : error.end].decode("cp1252", "replace"), error.end


def _read_json(path: Path) -> pa.Table:
    with pa.input_stream(str(path)) as stream:
        is_array = stream.read(1 << 10).decode("utf-8-sig", errors="replace").lstrip()[:1] == "["
    if is_array:
        with pa.input_stream(str(path)) as stream:
            return _from_memory(json.loads(stream.read()))
    options = pa.json.ReadOptions(block_size=_JSON_BLOCK_BYTES)
    try:
        table = pa.json.read_json(str(path), read_options=options)
    except pa.ArrowInvalid as error:
        if "changed from" not in str(error):  # of a column of several types
            raise
        return _from_memory(_json_lines(path))
    if any(map(_may_be_rounded, table.columns)):
        return _from_memory(_json_lines(path))
    fields = [field.with_type(_as_written(field.type)) for field in table.schema]
    if fields == list(table.schema):
        return table
    parse = pa.json.ParseOptions(explicit_schema=pa.schema(fields))
    return pa.json.read_json(str(path), read_options=options, parse_options=parse)


def _json_lines(path: Path) -> list[Any]:
    with pa.input_stream(str(path)) as stream:
        return [json.loads(line) for line in stream.read().splitlines() if line.strip()]


def _may_be_rounded(column: pa.ChunkedArray) -> bool:
    """Say whether Arrow may have read whole numbers beyond 64 bits as rounded ones."""
    is_float = pa.types.is_floating(column.type)
    return is_float and (pc.max(pc.abs(column)).as_py() or 0) >= 2**63


def _as_written(kind: pa.DataType) -> pa.DataType:
    """Return the type of a JSON column, texts where Arrow takes them for times."""
    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_as_written(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_as_written(field.type)) for field in kind.fields])
    return kind


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
        with _text_stream(path, _encoding(path)) as stream:
            lines = pa.csv.read_csv(stream, read, parse, convert).column("line")
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
    ".txt": _read_text,
    ".inter": _read_text,
    ".data": _read_text,
    ".dat": _read_text,
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
        chosen = "train" if "train" in found else next(iter(found))
        if others := ", ".join(split for split in found if split != chosen):
            logger.warning(
                "Hub data set '%s': its split %s is read, not %s; name another as '%s:%s/%s'",
                source, chosen, others, name, config or "default", others.split(", ")[0],
            )  # fmt: skip
        found = found[chosen]
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
        moments = _moments(values, column.name, table)
        if pa.types.is_floating(moments.type):
            moments = pc.divide(moments, float(TIME_UNITS[epoch_unit(moments)]))
        return moments
    if column.kind == "vector":
        return _vectors(values, column, table)
    where, is_list = _where(column.name, table), _is_list(values.type)
    if column.kind == "categorical" and (is_list or pa.types.is_struct(values.type)):
        raise ValueError(
            f"{where}: kind 'categorical' needs one value a row, the column holds {values.type}; "
            "declare it as 'categories'"
        )
    if column.kind == "categorical" and is_text(values.type):
        texts = pc.unique(values).drop_null()
        of_one = pc.value_counts(key_texts(texts))
        of_one = of_one.filter(pc.greater(of_one.field("counts"), 1))
        if len(of_one):
            logger.warning(
                "%s: %d values are written in several ways, such as %s; each is one category",
                where, len(of_one), of_one.field("values")[0],
            )  # fmt: skip
    has_values = values.null_count < len(values)
    if column.kind == "categories" and not is_list and not column.separator and has_values:
        raise ValueError(
            f"{where}: kind 'categories' needs lists, the column holds {values.type}; give the "
            "separator of its members, or declare it as 'categorical'"
        )
    return values


def decoded(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of a dictionary or of views of texts as plain values."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    return values.cast(pa.large_string()) if pa.types.is_string_view(values.type) else values


def key_texts(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the text of each key, as `text_of` has it: 5 and "5.0" are both "5", "" is missing."""
    values = decoded(values)
    if is_text(values.type):
        distinct = pc.unique(values)
        if not pc.any(pc.match_substring_regex(distinct, f"^{OTHER_TEXT}$")).as_py():
            return pc.if_else(pc.equal(values, ""), pa.scalar(None, values.type), values)
    if pa.types.is_integer(values.type):
        return values.cast(pa.string())
    return pa.chunked_array([_as_texts(values, "a key")])


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

    A column of texts may have one decimal sign throughout, point or comma, groups of thousands,
    and signs of currency or percent around its numbers: "1.303,95 €" is 1303.95, "12 %" is 12.
    "1,234" is 1234 unless another text of the column tells that the comma is decimal.

    Raises:
        ValueError: a value is no number, or is infinite; `otherwise` is what to do about it.
    """
    values, where = decoded(values), _where(name, table)
    if is_text(values.type):
        floats = _floats_of(values, where, otherwise)
    elif pa.types.is_boolean(values.type):
        floats = values.cast(pa.int8()).cast(pa.float64())
    elif values.null_count == len(values):
        floats = pa.chunked_array([pa.nulls(len(values), pa.float64())])
    elif _is_number(values.type):
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


def _differ(texts: pa.ChunkedArray, pattern: str) -> pa.ChunkedArray:
    """Say which texts, apart from the missing ones, do not match a pattern."""
    return pc.invert(pc.fill_null(pc.match_substring_regex(texts, pattern), fill_value=True))


def _floats_of(values: pa.ChunkedArray, where: str, otherwise: str) -> pa.ChunkedArray:
    try:
        return values.cast(pa.float64())
    except pa.ArrowInvalid:
        texts = pc.utf8_trim_whitespace(values)
    missing = _is_one_of(texts, MISSING_NUMBERS)
    texts = pc.if_else(missing, pa.scalar(None, texts.type), texts)
    for word, number in (("true", "1"), ("false", "0")):
        texts = pc.if_else(_is_one_of(texts, [word]), pa.scalar(number, texts.type), texts)
    wrong = _differ(texts, _NUMBER)
    if pc.any(wrong).as_py():
        texts, wrong = _plain_numbers(texts)
    if pc.any(wrong).as_py():
        row = first_row(wrong)
        raise ValueError(
            f"{where}: row {row} is {values[row - 1].as_py()!r}, which is not a number "
            f"({pc.sum(wrong).as_py()} such rows); correct it, or {otherwise}"
        )
    return pc.replace_substring_regex(texts, r"^\+", "").cast(pa.float64())


def _plain_numbers(texts: pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Return the numbers of a column as Python writes them, and which texts are none."""
    bare = pc.replace_substring_regex(texts, _AROUND_NUMBER, "")
    bare = pc.replace_substring_regex(bare, "^[\u2212\u2013]", "-")
    bare = pc.replace_substring_regex(bare, r"^(-?)\p{Sc}\s*", r"\1")
    by_comma = pc.any(pc.match_substring_regex(bare, _COMMA_IS_DECIMAL)).as_py()
    point, group = (",", f"[.{_BLANKS}]") if by_comma else (r"\.", f"[,{_BLANKS}]")
    grouped = rf"\d{{1,3}}({group}\d{{2,3}})*{group}\d{{3}}"
    other = rf"^[+-]?({grouped}|\d+)({point}\d+)?$"
    wrong = _differ(bare, other if by_comma else f"{other}|{_NUMBER}")
    joined = pc.replace_substring_regex(bare, group, "")
    return pc.replace_substring(joined, ",", ".") if by_comma else joined, wrong


def microseconds(values: pa.ChunkedArray, schema: InteractionSchema) -> NDArray[np.int64]:
    """Return the time of each interaction in microseconds since 1970, UTC.

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
        return plain.cast(pa.int64()).to_numpy()  # type: ignore[no-any-return]
    units = moments.to_numpy()
    seconds = units / TIME_UNITS[schema.time_unit]
    row = int(np.abs(seconds).argmax()) if len(seconds) else 0
    if len(seconds) and abs(seconds[row]) >= LATEST_SECONDS:
        raise ValueError(
            f"{where}: row {row + 1} is {units[row]:.0f}, which is no time in unit "
            f"{schema.time_unit!r}; set time_unit of 'interactions' to one of "
            f"{', '.join(TIME_UNITS)}"
        )
    return np.rint(seconds * 1e6).astype(np.int64)  # type: ignore[no-any-return]


def holds_times(values: pa.ChunkedArray) -> bool:
    """Say whether the first values of a column are times, dates or numbers of an epoch's size."""
    probe = values.slice(0, _PROBED_ROWS).drop_null()
    if not is_text(probe.type):
        is_number = pa.types.is_integer(probe.type) or pa.types.is_floating(probe.type)
        if not is_number:
            return bool(pa.types.is_timestamp(probe.type) or pa.types.is_date(probe.type))
        probe = probe.cast(pa.int64(), safe=False).cast(pa.string())
    like_epoch = pc.all(pc.match_substring_regex(probe, r"^([89]|1\d)\d{8}(\d{3}){0,3}$")).as_py()
    return len(probe) > 0 and (like_epoch or parse_moments(probe) is not None)


def epoch_unit(times: pa.ChunkedArray) -> str:
    """Return the unit of numbers since 1970 by the size of the largest, of `TIME_UNITS`."""
    largest = pc.max(pc.abs(times)).as_py() or 0
    return next((unit for unit, n in TIME_UNITS.items() if largest / n < LATEST_SECONDS), "s")


def parse_moments(texts: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Return dates and times as UTC timestamps, or None if one of the texts is none.

    They are ISO 8601, or of one other form throughout, such as 09/13/2020 12:26, 13.09.2020 or
    13 Sep 2020. Where day and month could be either, the month comes first between slashes, else
    the day.
    """
    for kind in (pa.timestamp("us"), pa.timestamp("us", "UTC")):
        try:
            return texts.cast(kind).cast(pa.timestamp("us", "UTC"))
        except pa.ArrowInvalid:
            continue
    moments = _dated(texts)
    return None if moments is None or moments.null_count > texts.null_count else moments


def _dated(texts: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Return dates and times of the form that most texts have, null where one has another."""
    probe = texts.slice(0, _PROBED_ROWS).drop_null()
    dates = probe.filter(pc.match_substring_regex(probe, _DATE))
    if len(dates) * 2 < max(len(probe), 1):
        return None
    day_first = "/" not in dates[0].as_py()
    forms = {form: None for first in (day_first, not day_first) for form in _forms(dates, first)}
    distinct = pc.unique(texts).drop_null()
    plain = pd.Series(distinct.to_pandas())
    found = {form: pd.to_datetime(plain, format=form, utc=True, errors="coerce") for form in forms}
    n_missed = {form: moments.isna().sum() for form, moments in found.items()}
    form = min(n_missed, key=lambda form: n_missed[form])
    best = found[form]
    if n_missed[form] == len(plain):
        return None
    rivals = [one for one, n in n_missed.items() if n == n_missed[form] and one != "ISO8601"]
    if (
        "." not in dates[0].as_py()
        and form in rivals
        and any(not found[one].equals(best) for one in rivals)
    ):
        logger.warning(
            "dates such as %r are read as %s, and could be %s; write 2024-01-31 to be sure",
            dates[0].as_py(), form, " or ".join(one for one in rivals if one != form),
        )  # fmt: skip
    moments = pa.array(best, pa.timestamp("us", "UTC"), from_pandas=True)
    return pa.chunked_array([moments.take(pc.index_in(texts, value_set=distinct).combine_chunks())])


def _forms(dates: pa.ChunkedArray, day_first: bool) -> Iterator[str]:
    """Yield the forms, as strptime has them, that the first dates may have."""
    for text in pc.unique(dates)[:10].to_pylist():
        if re.match(r"\d{4}-\d\d-\d\d", text):
            yield "ISO8601"
        bare = re.sub(r"(?i)\s*[ap]m$", "", text)
        with warnings.catch_warnings(action="ignore"):
            # A year in the first place is followed by the month.
            first = day_first and not re.match(r"\d{4}", bare)
            form = guess_datetime_format(bare, dayfirst=first)
        if form and bare != text:
            form = form.replace("%H", "%I") + text[len(bare) : -2] + "%p"
        yield from [form] if form else _RARE_DATES


def _moments(values: pa.ChunkedArray, name: str, table: str) -> pa.ChunkedArray:
    """Return timestamps, dates, or float64 epoch numbers."""
    if pa.types.is_timestamp(values.type) or pa.types.is_date(values.type):
        return values
    is_truth = values.is_valid() if pa.types.is_boolean(values.type) else None
    if is_text(values.type):
        texts = pc.utf8_trim_whitespace(values)
        missing = _is_one_of(texts, MISSING_NUMBERS)
        texts = pc.if_else(missing, pa.scalar(None, texts.type), texts)
        is_truth = _is_one_of(texts, ("true", "false"))
    if is_truth is not None and pc.any(is_truth).as_py():
        raise _no_time(values, first_row(is_truth), name, table)
    if not is_text(values.type):
        return numbers(values, name, table)
    moments = parse_moments(texts)
    if moments is not None:
        return moments
    moments = _dated(texts)
    n_present = len(texts) - texts.null_count
    if moments is None or (len(moments) - moments.null_count) * 2 < n_present:
        return numbers(values, name, table)
    row = first_row(pc.and_(moments.is_null(), texts.is_valid()))
    raise _no_time(values, row, name, table)


def _no_time(values: pa.ChunkedArray, row: int, name: str, table: str) -> ValueError:
    return ValueError(
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
    if values.null_count == len(values):
        return values
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
