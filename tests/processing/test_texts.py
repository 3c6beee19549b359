from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from modeling_ftmamba.encoders import column_texts, text_of

SAME_TEXT = [
    (
        "5",
        [
            5,
            5.0,
            "5",
            b"5",
            np.bytes_(b"5"),
            np.int8(5),
            np.float32(5),
            Decimal("5.00"),
            Decimal(5),
        ],
    ),
    ("-0.5", [-0.5, np.float64(-0.5), Decimal("-0.50")]),
    ("1e-07", [1e-7, Decimal("1e-7")]),
    ("0", [0, -0.0, "0"]),
    ("100000000000000000000", [10**20, 1e20]),
    ("true", [True, np.True_]),
    ("2020-02-29", [date(2020, 2, 29)]),
    (
        "2020-02-29T12:00:00",
        [
            datetime(2020, 2, 29, 12),
            datetime(2020, 2, 29, 12, tzinfo=UTC),
            datetime(2020, 2, 29, 14, tzinfo=timezone(timedelta(hours=2))),
            np.datetime64("2020-02-29T12:00:00", "ns"),
        ],
    ),
    ("inf", [float("inf"), Decimal("inf")]),
    (
        None,
        [
            None,
            "",
            pd.NaT,
            pd.NA,
            b"",
            float("nan"),
            np.float32("nan"),
            Decimal("nan"),
            np.datetime64("NaT"),
        ],
    ),
]
CASES = [(value, text) for text, values in SAME_TEXT for value in values]


@pytest.mark.parametrize(("value", "text"), CASES)
def test_a_value_has_one_text_whatever_its_type(value, text):
    assert text_of(value) == text


def texts_of(values):
    codes, texts = column_texts(values, "column 'x'")
    return [texts[code] or None for code in codes]


@pytest.mark.parametrize(
    "values",
    [
        pa.array([3, None, 5, 3]),
        pa.array([3.0, None, 5.0, 3.0]),
        pa.array(["3", None, "5", "3"]),
        pa.array(["3", None, "5", "3"], pa.large_string()),
        pa.array(["3", None, "5", "3"], pa.string_view()),
        pa.array(["3", None, "5", "3"]).dictionary_encode(),
        pa.chunked_array([["3", None], ["5", "3"]]),
        pa.chunked_array([pa.array(["3", None]).dictionary_encode(),
                          pa.array(["5", "3"]).dictionary_encode()]),
        pa.array(["x", "3", None, "5", "3"])[1:],
        np.array([3.0, np.nan, 5.0, 3.0]),
        np.array(["3", "", "5", "3"]),
        np.array([b"3", b"", b"5", b"3"]),
        pa.array([b"3", None, b"5", b"3"]),
        pd.array([3, pd.NA, 5, 3]),
        np.array([3, None, 5.0, "3"], dtype=object),
        ["3", None, 5, 3.0],
    ],
)  # fmt: skip
def test_every_container_gives_the_same_texts(values):
    assert texts_of(values) == ["3", None, "5", "3"]


def test_true_is_not_one():
    assert texts_of([1, True, 0, False, 1.0]) == ["1", "true", "0", "false", "1"]


@pytest.mark.parametrize("bad", [["a"], np.array([1, 2]), b"\xff", {}, object()])
def test_a_bad_value_among_good_ones_is_named(bad):
    for good in ([True, 1], ["a", "b"], [None, 2.5]):
        with pytest.raises(ValueError, match=r"^column 'x', row 2 .* must be a single text"):
            column_texts([*good, bad, bad], "column 'x'")


def test_times_of_arrow_and_numpy_and_python_agree():
    noon = datetime(2020, 2, 29, 12)
    for values in (
        pa.array([noon], pa.timestamp("ns")),
        pa.array([noon], pa.timestamp("s", "Europe/Berlin")),
        np.array([noon], dtype="datetime64[ns]"),
        [noon],
    ):
        assert texts_of(values) == ["2020-02-29T12:00:00"]


def test_an_empty_column_has_no_codes():
    for values in ([], np.array([]), pa.array([], pa.string()), pa.array([], pa.null())):
        assert column_texts(values, "")[0].shape == (0,)
    for kind in (pa.null(), pa.string(), pa.list_(pa.string()), pa.dictionary("int8", pa.string())):
        assert texts_of(pa.nulls(2, kind)) == [None, None]
