import numpy as np
import pyarrow as pa
import pytest

from modeling_ftmamba.configuration_ftmamba import Column
from modeling_ftmamba.encoders import VectorEncoder

ROWS = [[1.0, 2.0], None, [3.0, 4.5]]
NAN = float("nan")


@pytest.mark.parametrize(
    "values",
    [
        ROWS,
        [np.array([1, 2]), NAN, (3, 4.5)],
        np.array([[1, 2], [NAN, NAN], [3, 4.5]]),
        pa.array(ROWS),
        pa.array(ROWS, pa.list_(pa.float32(), 2)),
        pa.array([[9.0, 9.0], *ROWS], pa.list_(pa.float64(), 2))[1:],
        pa.array(ROWS, pa.large_list(pa.float16())),
        pa.chunked_array([ROWS[:1], ROWS[1:]]),
    ],
)
def test_every_container_gives_the_same_vectors(values):
    encoder = VectorEncoder.fit(Column("x", "vector"), "column 'x'", values)
    assert encoder.column.dimension == 2
    encoded = encoder.encode(values)
    assert encoded.dtype == np.float32
    assert np.array_equal(encoded, np.float32([[1, 2], [NAN, NAN], [3, 4.5]]), equal_nan=True)


@pytest.mark.parametrize(
    "bad", [[1.0], [1.0, 2.0, 3.0], [1.0, NAN], [1.0, float("inf")], ["1", "2"], "ab", 5, [[1, 2]]]
)
def test_a_wrong_vector_is_named_by_row(bad):
    encoder = VectorEncoder.fit(Column("x", "vector"), "column 'x'", ROWS)
    with pytest.raises(ValueError, match=r"column 'x', row 1 \(the first is 0\): must be a"):
        encoder.encode([[1.0, 2.0], bad])


@pytest.mark.parametrize("values", [[None, None], pa.array([None, None])])
def test_a_column_without_vectors_warns(values):
    with pytest.warns(UserWarning, match="column 'x' has no vector in the training rows"):
        encoder = VectorEncoder.fit(Column("x", "vector"), "column 'x'", values)
    assert np.isnan(encoder.encode([None])).all()


def test_a_stated_dimension_is_kept_to():
    with pytest.raises(ValueError, match="must be a vector of 3 finite numbers, got"):
        VectorEncoder.fit(Column("x", "vector", dimension=3), "column 'x'", ROWS)
