import time
from datetime import UTC, date, datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pytest

from modeling_ftmamba.configuration_ftmamba import Column
from modeling_ftmamba.encoders import TimestampEncoder, column_seconds

LEAP_NOON = datetime(2020, 2, 29, 12, tzinfo=UTC)
SECONDS = LEAP_NOON.timestamp()


@pytest.mark.parametrize(
    "value",
    [
        SECONDS,
        int(SECONDS),
        np.int64(SECONDS),
        "2020-02-29T12:00:00Z",
        "2020-02-29 12:00",
        "2020-02-29T14:00:00+02:00",
        LEAP_NOON,
        LEAP_NOON.replace(tzinfo=None),
        LEAP_NOON.astimezone(timezone(timedelta(hours=-7))),
        np.datetime64("2020-02-29T12:00", "ns"),
    ],
)
def test_every_way_to_write_a_time_is_the_same_time(value):
    assert column_seconds([value, None], "")[0] == SECONDS
    assert np.isnan(column_seconds([value, None], "")[1])


@pytest.mark.parametrize(
    "values",
    [
        pa.array([LEAP_NOON, None]),
        pa.array([LEAP_NOON, None], pa.timestamp("s", "Asia/Tokyo")),
        pa.array([LEAP_NOON.replace(tzinfo=None), None], pa.timestamp("ns")),
        pa.array([int(SECONDS), None]),
        pa.array([SECONDS, None]),
        pa.array(["2020-02-29 12:00:00", None]),
        pa.array(["2020-02-29T14:00:00+02:00", None]),
        pa.array(["2020-02-29T12:00Z", ""]),
        pa.array(["2020-02-29T12:00Z", None]).dictionary_encode(),
        np.array([SECONDS, np.nan]),
        np.array(["2020-02-29T12", "NaT"], dtype="datetime64[s]"),
        np.array(["2020-02-29T12:00Z", ""]),
    ],
)
def test_every_container_holds_the_same_times(values):
    seconds = column_seconds(values, "")
    assert seconds[0] == SECONDS
    assert np.isnan(seconds[1])


def test_the_machine_s_time_zone_means_nothing(monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        for naive in ("2020-02-29T12:00", LEAP_NOON.replace(tzinfo=None)):
            assert column_seconds([naive, None], "")[0] == SECONDS
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_date_is_its_midnight():
    midnight = datetime(2020, 2, 29, tzinfo=UTC).timestamp()
    for values in ([date(2020, 2, 29)], pa.array([date(2020, 2, 29)]), ["2020-02-29"]):
        assert column_seconds(values, "")[0] == midnight


def test_the_calendar_by_hand():
    encoder = TimestampEncoder.fit(Column("x", "timestamp"), "", [0, 10])
    monday_6_am = datetime(2024, 1, 1, 6, tzinfo=UTC)
    seconds = monday_6_am.timestamp()
    features = encoder.encode([monday_6_am, None])
    assert encoder.column.dimension == 7
    np.testing.assert_allclose(features[0, 0], (seconds - 5) / 5, rtol=1e-6)
    np.testing.assert_allclose(features[0, 1:3], [1, 0], atol=1e-6)  # a quarter of the day
    week, year = 2 * np.pi / 28, 2 * np.pi * 0.25 / 366
    np.testing.assert_allclose(features[0, 3:5], [np.sin(week), np.cos(week)], atol=1e-6)
    np.testing.assert_allclose(features[0, 5:7], [np.sin(year), np.cos(year)], atol=1e-6)
    assert np.isnan(features[1]).all()


def test_features_are_exact_far_from_1970():
    """In 32 bits a time in seconds would be wrong by minutes."""
    encoder = TimestampEncoder.fit(Column("x", "timestamp"), "", [1.7e9, 1.7e9 + 1])
    one_second = encoder.encode([1.7e9, 1.7e9 + 1])
    np.testing.assert_allclose(np.diff(one_second[:, 0]), 2, rtol=1e-6)
    np.testing.assert_allclose(np.hypot(one_second[:, 1], one_second[:, 2]), 1, rtol=1e-6)
    before_1970 = encoder.encode(["1969-12-31T18:00"])
    np.testing.assert_allclose(before_1970[0, 1:3], [-1, 0], atol=1e-6)


@pytest.mark.parametrize("value", [1.7e12, -1e11, float("inf")])
def test_milliseconds_are_noticed(value):
    for values in ([0, value], np.array([0.0, value]), pa.array([0.0, value])):
        with pytest.raises(ValueError, match=r"column 'x', row 1 .* \(not milliseconds\), got"):
            column_seconds(values, "column 'x'")


def test_a_column_without_spread_warns():
    for values, message in (([5, 5], "is always the same"), ([None], "has no value at all")):
        with pytest.warns(UserWarning, match=f"column 'x' {message}"):
            encoder = TimestampEncoder.fit(Column("x", "timestamp"), "column 'x'", values)
        assert encoder.encode([7])[0, 0] == 0
