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
    column_seconds,
    column_texts,
    number_of,
    text_of,
    text_table,
)

NAN = float("nan")
MISSING = [None, pd.NaT, pd.NA, NAN, np.float32("nan"), Decimal("nan"), np.datetime64("NaT")]
NOON = datetime(2020, 2, 29, 12, tzinfo=UTC)
NAIVE = NOON.replace(tzinfo=None)
SAME_TEXT = [
    ("5", [5, 5.0, "5", b"5", np.bytes_(b"5"), np.int8(5), np.float32(5), Decimal("5.00")]),
    ("-0.5", [-0.5, np.float64(-0.5), Decimal("-0.50")]),
    ("1e-07", [1e-7, Decimal("1e-7")]),
    ("0", [0, -0.0, "0"]),
    ("100000000000000000000", [10**20, 1e20]),
    ("true", [True, np.True_]),
    ("inf", [float("inf"), Decimal("inf")]),
    ("2020-02-29", [date(2020, 2, 29)]),
    (
        "2020-02-29T12:00:00",
        [NAIVE, NOON, NOON.astimezone(timezone(timedelta(hours=2))), np.datetime64(NAIVE, "ns")],
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
    ],
)  # fmt: skip
def test_every_container_gives_the_same_texts(values):
    assert texts_in(values) == ["3", None, "5", "3"]


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


def test_a_number_is_no_text_and_nothing_infinite():
    values = (3, Decimal("1.5"), np.float32(2), True)
    assert [number_of(value) for value in values] == [3, 1.5, 2, 1]
    assert all(np.isnan(number_of(value)) for value in (*MISSING[:-1], "", "?", " NaN"))
    for bad in ("3", float("-inf"), 10**400, [3], date(2020, 1, 1)):
        with pytest.raises((TypeError, ValueError, OverflowError)):
            number_of(bad)


@pytest.mark.parametrize(
    "values",
    [
        *([value, None] for value in (
            NOON.timestamp(), int(NOON.timestamp()), np.int64(NOON.timestamp()), NOON, NAIVE,
            Decimal(NOON.timestamp()), "2020-02-29T12:00:00Z", "2020-02-29 12:00",
            "2020-02-29T14:00:00+02:00", NOON.astimezone(timezone(timedelta(hours=-7))),
            np.datetime64(NAIVE, "ns"),
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
    "value", [1.7e12, -1e11, float("inf"), 1_700_000_000_000, pd.Period("2020")]
)
def test_milliseconds_and_periods_are_no_seconds(value):
    containers = [[0, value]]
    if isinstance(value, float):
        containers += [np.array([0.0, value]), pa.array([0.0, value]), [0.0, value]]
    for values in containers:
        with pytest.raises(ValueError, match=r"column 'x', row 1 .* \(not milliseconds\), got"):
            column_seconds(values, "column 'x'")


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
