"""One meaning of a raw value, whatever its type and its container."""

import time
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from modeling_ftmamba.encoders import (
    MISSING_TEXTS,
    TextTable,
    column_numbers,
    column_seconds,
    column_texts,
    number_of,
    text_of,
    text_table,
)

NAN = float("nan")
MISSING = [None, pd.NaT, pd.NA, NAN, np.float32("nan"), Decimal("nan"), np.datetime64("NaT")]
COLUMNS = (column_numbers, column_seconds, column_texts)
NOON = datetime(2020, 2, 29, 12, tzinfo=UTC)
NAIVE = NOON.replace(tzinfo=None)
SAME_TEXT = [
    ("5", [5, 5.0, "5", b"5", np.bytes_(b"5"), np.int8(5), np.float32(5), Decimal("5.00"), "5.0"]),
    ("-0.5", [-0.5, np.float64(-0.5), Decimal("-0.50"), "-0.50"]),
    ("0.1", [0.1, np.float32(0.1), np.float16(0.1), np.longdouble("0.1"), "0.10", b"0.1"]),
    ("1e-07", [1e-7, Decimal("1e-7"), "1e-07", "0.0000001"]),
    ("0", [0, -0.0, "0", "-0.0"]),
    ("100000000000000000000", [10**20, 1e20, "1e+20"]),
    ("9007000000000000", [9.007e15, "9.007e15", "9007000000000000.0"]),
    ("9007199254740993", [2**53 + 1, "9007199254740993.00", Decimal(2**53 + 1)]),
    ("true", [True, np.True_, "True", "TRUE"]),
    *((text, [text]) for text in ("007", "1e5", "1.2.3", "+5", "1_0", ".5", "1e+999999999")),
    ("inf", [float("inf"), Decimal("inf")]),
    ("2020-02-29", [date(2020, 2, 29), datetime(2020, 2, 29), "2020-02-29T00:00:00.000"]),
    ("2020-13-29 25:61", ["2020-13-29 25:61"]),
    (
        "2020-02-29T12:00:00",
        [
            NAIVE,
            NOON,
            NOON.astimezone(timezone(timedelta(hours=2))),
            np.datetime64(NAIVE, "ns"),
            "2020-02-29 12:00",
            "2020-02-29T14:00:00+02:00",
            "2020-02-29 12:00:00.000000Z",
        ],
    ),
    ("New York", [" New York", "New York\u00a0", b"New York\n"]),
    (None, [*MISSING, *MISSING_TEXTS, b"", " ", "NaN", "NULL", b"?"]),
]


@pytest.mark.parametrize(
    ("value", "text"), [(value, text) for text, values in SAME_TEXT for value in values]
)
def test_a_value_has_one_text_whatever_its_type(value, text):
    assert text_of(value) == text


def texts_in(values):
    codes, texts = column_texts(values, "column 'x'")
    return [texts[code] for code in codes]


@pytest.mark.parametrize(
    "values",
    [
        pa.array([3, None, 5, 3]),
        pa.array([3.0, None, 5.0, 3.0]),
        pa.array(["3", None, "5", "3"]),
        pa.array(["3", None, "5", "3"], pa.large_string()),
        pa.array(["3", None, "5", "3"], pa.string_view()),
        pa.array([b"3", None, b"5", b"3"]),
        pa.array(["3", None, "5", "3"]).dictionary_encode(),
        pa.chunked_array([["3", None], ["5", "3"]]),
        pa.chunked_array([pa.array(["3", None]).dictionary_encode(),
                          pa.array(["5", "3"]).dictionary_encode()]),
        pa.array(["x", "3", None, "5", "3"])[1:],
        pd.array([3, pd.NA, 5, 3]),
        np.array([3.0, np.nan, 5.0, 3.0]),
        np.array(["3", "", "5", "3"]),
        np.array([b"3", b"", b"5", b"3"]),
        np.array([3, None, 5.0, "3"], dtype=object),
        ["3", None, 5, 3.0],
        pa.array(["3.0", None, "5.00", "3"]),
    ],
)  # fmt: skip
def test_every_container_gives_the_same_texts(values):
    assert texts_in(values) == ["3", None, "5", "3"]


def test_a_short_float_has_the_text_that_it_has_in_a_file():
    for values in (np.array([0.1, 8.5], "f4"), pa.array([0.1, 8.5], pa.float32())):
        assert texts_in(values) == texts_in(pa.array(["0.1", "8.50"])) == ["0.1", "8.5"]


def test_true_is_not_one():
    assert texts_in([1, True, 0, False, 1.0]) == ["1", "true", "0", "false", "1"]


@pytest.mark.parametrize("bad", [["a"], np.array([1, 2]), b"\xff", {}, object()])
def test_a_bad_value_among_good_ones_is_named(bad):
    for good in ([True, 1], ["a", "b"], [None, 2.5]):
        with pytest.raises(ValueError, match=r"^column 'x', row 2 .* must be a single text"):
            column_texts([*good, bad, bad], "column 'x'")


def test_times_as_texts_agree_between_containers():
    for values in (
        pa.array([NAIVE], pa.timestamp("ns")),
        pa.array([NOON], pa.timestamp("s", "Europe/Berlin")),
        np.array([NAIVE], dtype="datetime64[ns]"),
        [NOON],
    ):
        assert texts_in(values) == ["2020-02-29T12:00:00"]


def test_an_empty_column_has_no_codes():
    for values in ([], np.array([]), pa.array([], pa.string()), pa.array([], pa.null())):
        assert column_texts(values, "")[0].shape == (0,)
    for kind in (pa.null(), pa.string(), pa.list_(pa.string()), pa.dictionary("int8", pa.string())):
        assert texts_in(pa.nulls(2, kind)) == [None, None]


def test_a_number_has_a_text_as_in_a_file_and_is_finite():
    values = (3, Decimal("1.5"), np.float32(2), True, " 1990", "-2.50e1", "True", ".5")
    assert [number_of(value) for value in values] == [3, 1.5, 2, 1, 1990, -25, 1, 0.5]
    missing = (*MISSING[:-1], "", "?", " NaN", "NA", "None", ".")
    assert all(np.isnan(number_of(value)) for value in missing)
    durations = (timedelta(seconds=5), np.timedelta64(5, "ns"), pd.Timedelta(5))
    infinite = (float("-inf"), "inf", "1e400", 10**400)
    for bad in (*infinite, *durations, "1,234", "1_0", "٣", "12 %", [3], date(2020, 1, 1)):
        with pytest.raises((TypeError, ValueError, OverflowError)):
            number_of(bad)


def test_durations_are_no_numbers():
    """NumPy counts nanoseconds."""
    for convert in COLUMNS:
        with pytest.raises(ValueError, match=r"row 1 .* got datetime\.timedelta"):
            convert(np.array(["NaT", 5000], "m8[ns]"), "x")


@pytest.mark.parametrize(
    "values",
    [
        *([value, None] for value in (
            NOON.timestamp(), int(NOON.timestamp()), np.int64(NOON.timestamp()), NOON, NAIVE,
            Decimal(NOON.timestamp()), "2020-02-29T12:00:00Z", "2020-02-29 12:00",
            "2020-02-29T14:00:00+02:00", NOON.astimezone(timezone(timedelta(hours=-7))),
            np.datetime64(NAIVE, "ns"), str(int(NOON.timestamp())), "1582977600.0",
        )),
        [NOON, pd.NaT],
        ["2020-02-29T12:00Z", ""],
        [" 2020-02-29T12:00Z ", "-"],
        pa.array([NOON, None]),
        pa.array([NOON, None], pa.timestamp("s", "Asia/Tokyo")),
        pa.array([NAIVE, None], pa.timestamp("ns")),
        pa.array([NOON.timestamp(), None]),
        pa.chunked_array([[int(NOON.timestamp())], [None]]),
        pa.array(["2020-02-29 12:00:00", None]),
        pa.array(["2020-02-29T14:00:00+02:00", None]),
        pa.array(["2020-02-29T12:00Z", None]).dictionary_encode(),
        np.array([NOON.timestamp(), np.nan]),
        np.array(["2020-02-29T12", "NaT"], dtype="datetime64[s]"),
        np.array(["2020-02-29T12:00Z", ""]),
    ],
)  # fmt: skip
def test_every_type_and_container_holds_the_same_times(values):
    seconds = column_seconds(values, "")
    assert seconds[0] == NOON.timestamp()
    assert np.isnan(seconds[1])


def test_the_machine_s_time_zone_means_nothing(monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        for naive in ("2020-02-29T12:00", NAIVE):
            assert column_seconds([naive, None], "")[0] == NOON.timestamp()
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_date_is_its_midnight():
    midnight = datetime(2020, 2, 29, tzinfo=UTC).timestamp()
    for values in ([date(2020, 2, 29)], pa.array([date(2020, 2, 29)]), ["2020-02-29"]):
        assert column_seconds(values, "")[0] == midnight


@pytest.mark.parametrize(
    "value",
    [1.7e12, 2e11, -1e11, float("inf"), 1_700_000_000_000, "1712123112345", pd.Period("2020")],
)
def test_milliseconds_and_periods_are_no_seconds(value):
    containers = [[0, value]]
    if isinstance(value, float):
        containers += [np.array([0.0, value]), pa.array([0.0, value]), [0.0, value]]
    for values in containers:
        with pytest.raises(ValueError, match=r"column 'x', row 1 .* \(not milliseconds\), got"):
            column_seconds(values, "column 'x'")


def test_a_text_is_a_time_of_iso_8601_or_a_number_and_nothing_else():
    assert column_seconds(["20200229", "2020-02-29"], "")[0] == NOON.timestamp() - 43_200
    for text in ("13.09.2020", "09/13/2020", "2020-W03-5", "2020-1-5", "171212315122"):
        with pytest.raises(ValueError, match="ISO 8601 text such as 2024-01-31 18:05, a date"):
            column_seconds([text], "x")


def test_the_last_day_of_the_calendar_is_a_date():
    for values in (pa.array([date(9999, 12, 31)]), ["9999-12-31"], [date(9999, 12, 31)]):
        assert column_seconds(values, "")[0] == 253402214400


@pytest.mark.parametrize(
    "texts", [[], [""], ["", "a", ""], ["plain", "ascii"], ["Ärzte", "日本", "🎬", "\ud800"]]
)
def test_texts_survive_packing(texts):
    table = text_table(texts)
    assert list(table) == texts
    assert list(table[1:]) == texts[1:]
    assert [table[row] for row in range(-len(texts), len(texts))] == texts * 2
    assert list(TextTable(table.packed, table.offsets)) == texts
    with pytest.raises(IndexError):
        table[len(texts)]


@pytest.mark.parametrize("offsets", [[], [0, 2], [0, 2, 1, 3], [1, 3], [[0, 3]]])
def test_offsets_that_do_not_fit_the_bytes_are_refused(offsets):
    packed = text_table(["abc"]).packed
    with pytest.raises(ValueError, match="table of texts is damaged"):
        TextTable(packed, np.array(offsets, dtype=np.int64))


@pytest.mark.parametrize(("text", "offsets"), [(b"a\xff", [0, 1, 2]), ("Ä".encode(), [0, 1, 2])])
def test_texts_that_are_not_utf8_are_refused_before_one_is_read(text, offsets):
    with pytest.raises(ValueError, match=r"utf-8|inside a character"):
        TextTable(np.frombuffer(text, dtype=np.uint8), np.array(offsets, dtype=np.int64))
