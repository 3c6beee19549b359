"""Sums over a tile of channels, many at once, for Triton kernels of one warp."""

# mypy: ignore-errors
# ruff: noqa: RUF005

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("Triton is not installed: pip install triton") from error


@triton.jit
def fold(vector, TILE: tl.constexpr):
    """Return 32 numbers with the sum of a tile's 32 or 64."""
    if TILE == 64:
        left, right = tl.split(tl.reshape(vector, [32, 2]))
        vector = left + right
    return vector


@triton.jit
def halve(vectors, lane, BIT: tl.constexpr, COUNT: tl.constexpr):
    """Return half as many vectors: lanes without the bit go on with the first of each two.

    Each lane hands its part of the other one to the lane that differs from it in the bit.
    """
    kept = ()
    first = (lane & BIT) == 0
    for i in tl.static_range(0, COUNT - 1, 2):
        own = tl.where(first, vectors[i], vectors[i + 1])
        other = tl.where(first, vectors[i + 1], vectors[i])
        kept = kept + (own + tl.gather(other, lane ^ BIT, 0),)
    if COUNT % 2 == 1:
        odd = vectors[COUNT - 1]
        kept = kept + (odd + tl.gather(odd, lane ^ BIT, 0),)
    return kept


@triton.jit
def sums_by_lane(vectors, COUNT: tl.constexpr):
    """Return the sum of vector i in lane i, of at most 32 vectors of 32 numbers.

    Summed one by one they would shuffle five times as often.
    """
    lane = tl.arange(0, 32)
    vectors = halve(vectors, lane, 1, COUNT)
    vectors = halve(vectors, lane, 2, (COUNT + 1) // 2)
    vectors = halve(vectors, lane, 4, (COUNT + 3) // 4)
    vectors = halve(vectors, lane, 8, (COUNT + 7) // 8)
    vectors = halve(vectors, lane, 16, (COUNT + 15) // 16)
    return vectors[0]
