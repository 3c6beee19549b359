"""The same value has the same ids in every container and at every entrance, or is refused in all.

A walk over values: each is put into every container that can hold it, by the container's usual
writer, and read by every entrance.
"""

import json
import random
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from ftmamba.data.fitting import fit_extractor
from ftmamba.data.readers import key_texts, read_table, typed_column
from ftmamba.known_users import records_of
from ftmamba.streaming.events import parse_event
from modeling_ftmamba.catalogue import Catalogue
from modeling_ftmamba.configuration_ftmamba import Column
from modeling_ftmamba.encoders import LATEST_SECONDS, column_texts
from modeling_ftmamba.processing_ftmamba import FTMambaFeatureExtractor

NOON = datetime(2020, 2, 29, 12, 0, 5, 250_000)
VALUES = [
    *(None, float("nan"), "", "-", "?", "NA", "null", "none", True, False, "True", "TRUE", "yes"),
    *(0, -0.0, 5, -7, 5.0, "5", "5.0", " 5 ", "5.00", Decimal("5.00"), "0005", "+5", "1e5", "5e-1"),
    *(8.5, "8.50", "08.5", Decimal("8.50"), 0.1, "0.10", 1e16, 1e-5, 1e300, 9.007e15, 2**53 + 1),
    *("9.007e15", "9007199254740993", 10**17 + 1, float("inf"), "inf", "1e400", "1_000", "٣"),
    *("Oslo", " New  York ", "Ærø", "a,b", 'say "x"', "1.2.3", "i'm", "#5", "x\ty", "🎬"),
    *(date(2020, 2, 29), NOON, NOON.replace(tzinfo=UTC), datetime(2020, 2, 29), "2020-02-29"),
    *("2020-02-29 12:00:05.25", "2020-02-29T12:00Z", "20200229", "2020-W09-6", "1712123112345"),
    *(1_582_977_605, "1582977605", 1582977605.25, 253_402_300_800, "9999-12-31", "2020-02-30"),
    *map(np.float32, (0.1, 8.5, 1e7, 16_777_217)),
    *(np.int8(5), np.uint64(2**63), np.bool_(True), np.str_("Oslo"), np.float16(8.5)),
    *(np.datetime64("2020-02-29"), np.datetime64("NaT"), pd.NaT, pd.NA, pd.Timestamp(NOON)),
]
REFUSED = [
    *(timedelta(seconds=5), np.timedelta64(5, "ns"), pd.Timedelta(5), ["Oslo"], {"a": 1}),
    *(pd.Period("2020-02"), pd.Period("2020"), {"a"}),
]
IN_OTHER_ROWS = ["1,234", "1.303,95 €", "12 %", "13.09.2020", "2020-2-9", 1_700_000_000_000]
"""Numbers and times whose form a table to train on shows in its other rows."""
KNOWN = ["5", "-7", "0", "true", "false", "8.5", "0.1", "Oslo", "New  York", "0005", "1e-05",
         "2020-02-29", "2020-02-29T12:00:05.250000", "9007199254740993", "10000000"]  # fmt: skip


def plain(value):
    """Return what a writer of JSON makes of a value."""
    if isinstance(value, np.floating):
        return float(str(value))
    value = value.item() if isinstance(value, np.generic) else value
    if value is pd.NA or value is pd.NaT or value != value:
        return None
    return value if isinstance(value, str | int | float | list | dict | None) else str(value)


HAVE_NO_TEXT = (timedelta, np.timedelta64, pd.Period, list, dict, set)
"""Of whose types a file of texts has none."""
ITEM = [{"name": "y", "kind": "categorical"}]


def frame(value, kind=None):
    return pd.DataFrame({"x": pd.Series([value], dtype=kind)})


def as_csv(value, folder):
    frame(value).to_csv(folder / "t.csv", index=False)
    return read_table(folder / "t.csv")


def as_parquet(value, folder):
    frame(value).to_parquet(folder / "t.parquet")
    return read_table(folder / "t.parquet")


def as_jsonl(value, folder):
    text = json.dumps({"x": plain(value)}, ensure_ascii=False)
    (folder / "t.jsonl").write_text(text + "\n", encoding="utf-8")
    return read_table(folder / "t.jsonl")


FILES = {
    "csv": as_csv,
    "parquet": as_parquet,
    "jsonl": as_jsonl,
    "pandas read": lambda value, _: read_table(frame(value)),
    "records read": lambda value, _: read_table([{"x": value}]),
}
RECORDS = {
    "record": lambda value: {"x": value},
    "list": lambda value: [{"x": value}],
    "columns": lambda value: {"x": [value]},
    "numpy": lambda value: {"x": frame(value)["x"].to_numpy()},
    "pandas": frame,
    "pandas of objects": lambda value: frame(value, object),
    "arrow": lambda value: pa.table({"x": pa.array([value], from_pandas=True)}),
    "endpoint": lambda value: json.loads(json.dumps({"x": plain(value)})),
}


def outcome(read, *values):
    """Return what is read, or that it is refused, in one line."""
    try:
        return read(*values)
    except ValueError as error:
        return "refused" if "\n" not in str(error) else str(error)


def containers(value, folder):
    """Return what each container holds, or that it refuses the value."""
    held, has_type = {}, isinstance(value, HAVE_NO_TEXT)
    for name, of in RECORDS.items():
        is_json = not has_type or isinstance(value, list | dict)
        is_arrow = not isinstance(value, set | np.datetime64)
        is_one = not isinstance(value, list)  # in a dict a list is a column
        holds = {"record": is_one, "endpoint": is_one and is_json, "arrow": is_arrow}
        if holds.get(name, True):
            held[name] = outcome(of, value)
    for name, of in FILES.items():
        if not has_type or name.endswith("read"):
            held[name] = outcome(of, value, folder)
    return held


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def extractors():
    """One for each kind of column."""
    known = {"categorical": KNOWN, "numeric": [-5.0, 5.0], "timestamp": [0, 2 * 10**9]}
    extractors = {}
    for kind, values in known.items():
        blank = FTMambaFeatureExtractor([{"name": "x", "kind": kind}], ITEM)
        extractors[kind] = fit_extractor(blank, {"x": values}, {"y": [0, 1]})
    return extractors


def encoded(extractor, users):
    if isinstance(users, pa.Table):
        users = records_of(users)
    return extractor(users=users)[extractor.model_input_names[0]][0].numpy()


def trained(extractor, table):
    """Encode a table as for training."""
    (column,) = extractor.columns("user")
    values = typed_column(table.column("x"), Column("x", column.kind), "users")
    return encoded(extractor, pa.table({"x": values}))


def are_same(found, expected):
    if isinstance(found, str) or isinstance(expected, str):
        return isinstance(found, str) and isinstance(expected, str) and found == expected
    return np.allclose(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


def shows_in_other_rows(value, kind):
    """Say whether other rows of a table to train on tell what a value means."""
    if any(value is one for one in IN_OTHER_ROWS):
        return True
    try:
        return kind == "timestamp" and abs(float(value)) >= LATEST_SECONDS
    except (TypeError, ValueError):
        return False


def drawn(n, seed=0):
    """Return values of many kinds drawn at random."""
    rng = random.Random(seed)
    draws = [
        lambda: rng.uniform(-1, 1) * 10 ** rng.randint(-9, 17),
        lambda: rng.randint(-(10 ** rng.randint(1, 18)), 10 ** rng.randint(1, 18)),
        lambda: "".join(rng.choices("0123456789.-eE+ T:ZaN", k=rng.randint(1, 8))),
        lambda: f"{rng.randint(-999, 999)}.{rng.randint(0, 99):02}",
        lambda: str(datetime(1970, 1, 1) + timedelta(milliseconds=rng.randint(0, 2 * 10**12))),
        lambda: np.float32(round(rng.uniform(-99, 99), rng.randint(0, 6))),
        lambda: Decimal(rng.randint(-(10**9), 10**9)).scaleb(-rng.randint(0, 6)),
    ]
    return [rng.choice(draws)() for _ in range(n)]


@pytest.mark.parametrize("value", [*VALUES, *REFUSED, *IN_OTHER_ROWS, *drawn(25)], ids=repr)
def test_a_value_has_one_encoding_in_every_container(extractors, value, folder):
    held = containers(value, folder)
    assert len(held) >= 7
    for kind, extractor in extractors.items():
        expected = outcome(encoded, extractor, held["list"])
        for name, users in held.items():
            found = users if isinstance(users, str) else outcome(encoded, extractor, users)
            assert are_same(found, expected), (kind, name, found, expected)
            if isinstance(users, pa.Table) and not shows_in_other_rows(value, kind):
                found = outcome(trained, extractor, users)
                assert are_same(found, expected), (kind, name, "in training", found, expected)
        if isinstance(value, HAVE_NO_TEXT):
            assert expected == "refused"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *(("categories", value) for value in (
            ["a", "b"], ["b", "5", "a"], [], ["new"], None, "['a', 'b']", "( 'b', \"a\", )", "[]",
            "", "a b", "a|b", "{'a'}", "5", 5, "['a', 'b'] x",
        )),
        *(("vector", value) for value in (
            [0.5, -1.0], [1, 2], "[0.5, -1.0]", "0.5 -1", "(0.5;-1)", None, "", [0.5], "a b", "[1]",
            "[0.5, x]", ["a", "b"], 5,
        )),
    ],
)  # fmt: skip
def test_a_list_has_one_encoding_in_every_container(kind, value, folder):
    known = {"categories": [["a", "b", "5"], []], "vector": [[0.0, 1.0], [1.0, 0.0]]}
    blank = FTMambaFeatureExtractor([{"name": "x", "kind": kind}], ITEM)
    extractor = fit_extractor(blank, {"x": known[kind]}, {"y": [0, 1]})
    expected = outcome(encoded, extractor, [{"x": value}])
    for name, of in RECORDS.items():
        if name not in ("record", "endpoint", "columns", "numpy"):  # dicts, where a list is both
            held = outcome(of, value)
            found = held if isinstance(held, str) else outcome(encoded, extractor, held)
            assert are_same(found, expected), (name, found, expected)
    for name, of in FILES.items():
        table = outcome(of, value, folder)
        assert are_same(outcome(encoded, extractor, table), expected), name
        assert are_same(outcome(trained, extractor, table), expected), (name, "in training")


@pytest.mark.parametrize("value", [*VALUES, *REFUSED, *IN_OTHER_ROWS, *drawn(25, 1)], ids=repr)
def test_a_key_is_the_same_at_every_entrance(value, folder):
    key = outcome(lambda: column_texts([value], "x")[1][0])
    catalogue = Catalogue(["no key", key or "none"], ["", ""], np.zeros((2, 1), np.float32))
    expected = {"refused": "refused", None: [None]}.get(key, [1])
    assert outcome(catalogue.rows, [value]) == expected
    for name, held in containers(value, folder).items():
        if name in FILES and isinstance(held, pa.Table):
            found = outcome(lambda held=held: key_texts(held.column("x")).to_pylist()[0])
            # A file may mean by NA that a value is missing.
            assert found == (None if key == "NA" else key), name
    if not isinstance(value, timedelta | np.timedelta64 | pd.Period | set) and key != "inf":
        text = json.dumps({"user_key": plain(value), "item_key": plain(value)})
        event = outcome(parse_event, text)
        found = event if isinstance(event, str) else [event.user_key, event.event.item]
        assert found == ([key, key] if expected == [1] else "refused")
