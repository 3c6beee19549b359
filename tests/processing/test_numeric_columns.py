from statistics import NormalDist

import numpy as np
import pyarrow as pa
import pytest

from modeling_ftmamba.configuration_ftmamba import Column
from modeling_ftmamba.encoders import NumericEncoder


def fit(values, **options):
    return NumericEncoder.fit(Column("x", "numeric", **options), "column 'x'", values)


def test_standard_scaling_has_mean_zero_and_spread_one_on_training_rows():
    encoded = fit([1, 2, 3, None, 6]).encode([1, 2, 3, None, 6])[:, 0]
    np.testing.assert_allclose(encoded[:3], np.array([-2, -1, 0]) / np.sqrt(3.5), rtol=1e-6)
    assert np.isnan(encoded[3])


def test_no_scaling_leaves_numbers_as_they_are():
    assert fit([1, 5], scaling="none").encode([7.5, None])[0, 0] == 7.5


def test_quantile_scaling_gives_the_normal_score_of_the_middle_rank():
    encoder = fit([10, 20, 20, 40], scaling="quantile")
    scores = [NormalDist().inv_cdf(rank) for rank in (1 / 8, 4 / 8, 7 / 8)]
    np.testing.assert_allclose(encoder.encode([10, 20, 40])[:, 0], scores, atol=1e-6)
    np.testing.assert_allclose(encoder.encode([15])[0, 0], (scores[0] + scores[1]) / 2, rtol=1e-6)
    np.testing.assert_allclose(encoder.encode([-1e9, 1e9])[:, 0], scores[::2], rtol=1e-6)


def test_quantile_scaling_makes_a_skewed_column_normal(rng):
    values = np.exp(3 * rng.standard_normal(50_000))
    encoder = fit(values, scaling="quantile")
    assert encoder.table.shape[1] <= 1000
    encoded = encoder.encode(values)[:, 0]
    for rank in (0.01, 0.1, 0.5, 0.9, 0.99):
        assert np.quantile(encoded, rank) == pytest.approx(NormalDist().inv_cdf(rank), abs=0.01)


def test_edges_split_the_scaled_training_values_evenly(rng):
    values = rng.standard_normal(48_000)
    encoder = fit(values)
    encoded = encoder.encode(values)[:, 0]
    edges = encoder.column.edges
    assert len(edges) == 49
    assert (edges[0], edges[-1]) == (encoded.min(), encoded.max())
    inside = np.histogram(encoded, edges)[0]
    assert inside.min() >= 990
    assert inside.max() <= 1010


def test_edges_of_few_values_rise_strictly():
    edges = fit([0.0, 0.0, 0.0, 1.0, 1.0, 5.0]).column.edges
    assert len(edges) >= 2
    assert (np.diff(np.float32(edges)) > 0).all()


def test_values_almost_alike_share_a_bin():
    """A bin a millionth wide would multiply what lies beyond it by a million."""
    edges = fit([0.0] * 50 + [1e-6] * 50 + [1.0] * 50 + [1.0 + 1e-6] * 50).column.edges
    assert np.diff(edges).min() > 1e-4 * (edges[-1] - edges[0])


@pytest.mark.parametrize(
    ("values", "message"), [([3, 3, None], "is constant"), ([None, None], "has no value at all")]
)
@pytest.mark.parametrize("scaling", ["standard", "quantile"])
def test_a_column_without_spread_warns_and_becomes_zero(values, message, scaling):
    with pytest.warns(UserWarning, match=f"column 'x' {message} .* becomes 0"):
        encoder = fit(values, scaling=scaling)
    encoded = encoder.encode([3, 99, None])[:, 0]
    assert encoded[:2].tolist() == [0, 0]
    assert np.isnan(encoded[2])
    assert encoder.column.edges == ()


def test_rounding_does_not_give_a_constant_column_a_spread():
    with pytest.warns(UserWarning, match="is constant"):
        encoder = fit([0.1] * 1000)
    assert encoder.encode([0.1])[0, 0] == 0


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1.5, None, 3.0]),
        pa.chunked_array([[1.5], [None, 3.0]]),
        pa.array([1.5, None, 3.0], pa.float32()),
        np.array([1.5, np.nan, 3.0]),
        np.array([1.5, None, 3.0], dtype=object),
        (1.5, None, 3),
    ],
)
def test_every_container_gives_the_same_numbers(values):
    encoded = fit([1, 2]).encode(values)
    assert np.array_equal(encoded, fit([1, 2]).encode([1.5, None, 3.0]), equal_nan=True)
    assert encoded.dtype == np.float32


def test_values_too_large_to_standardise_name_the_remedy():
    with pytest.raises(
        ValueError, match=r"column 'x' cannot be standardised, .* scaling 'quantile'"
    ):
        fit([1e308, -1e308])
    with pytest.raises(ValueError, match=r"column 'x', row 1 .* fit in 32 bits"):
        fit([1.0, 2.0]).encode([1.0, 1e300])
