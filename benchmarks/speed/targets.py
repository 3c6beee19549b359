"""What the towers must reach, as data: ratios of times in one run, 4 layers, d 64, one thread."""

from dataclasses import dataclass

N_LAYERS = 4
STATE_SIZE = 16
SIZES = (64, 192)
THREADS = (1, 2)
MODES = ("train", "infer")


@dataclass(frozen=True)
class Shape:
    """A batch of records and the tokens of each."""

    batch: int
    length: int

    def __str__(self) -> str:
        return f"({self.batch}, {self.length})"


SHAPES = (
    Shape(256, 11),
    Shape(1024, 21),
    Shape(256, 41),
    Shape(32, 200),
    Shape(8, 1000),
    Shape(1, 10_000),
)


@dataclass(frozen=True)
class RatioTarget:
    """How many times faster than a rival the Mamba tower must be, shape by shape.

    Attributes:
        mode: `train` or `infer`.
        rival: a contender's name, or `best FT-Transformer`: the fastest variant of the cell.
        at_least: one ratio a shape of `SHAPES`; None where there is no target.
    """

    mode: str
    rival: str
    at_least: tuple[float | None, ...]

    @property
    def title(self) -> str:
        """What the row of the table is called."""
        return f"{self.mode}, times faster than {self.rival}"


BEST_FT_TRANSFORMER = "best FT-Transformer"
TRANSFORMERS = "transformers"
RATIO_TARGETS = (
    RatioTarget("train", TRANSFORMERS, (15, 20, 30, 110, 400, None)),
    RatioTarget("infer", TRANSFORMERS, (12, 12, 12, 12, 15, 35)),
    RatioTarget("train", BEST_FT_TRANSFORMER, (1.0, 1.1, 1.2, 1.7, 5, 40)),
    RatioTarget("infer", BEST_FT_TRANSFORMER, (1.0, 1.0, 1.2, 1.7, 5, 35)),
)
TARGET_SIZE = 64
TARGET_THREADS = 1

# Errors against float64, relative, in float32. A contender beyond them is not timed.
LARGEST_VALUE_ERROR = 1e-6
LARGEST_GRADIENT_ERROR = 1e-5

# Peak memory of a training step at this shape, over the best FT-Transformer's.
MEMORY_SHAPE = Shape(1024, 21)
LARGEST_MEMORY_RATIO = 1.5

# Dearest token over cheapest token, from the first to the last length.
LARGEST_TOKEN_COST_RATIO = 1.3
N_SCALING_TOKENS = 10_000
SCALING_LENGTHS = (11, 21, 41, 100, 200, 500, 1000, 2000, 5000, 10_000)

# Inference of one record, milliseconds a tower.
LATENCY_SHAPE = Shape(1, 11)
LARGEST_LATENCY_MS = 0.4

# The scan alone, thousand million elements (batch x length x channels x state) a second.
SCAN_SHAPES = (Shape(1024, 21), Shape(32, 200))
LEAST_SCAN_GELEM = {"forward": 9.0, "backward": 4.5}

# Times that are aimed at beyond the ratios: milliseconds to train d 64 on one thread.
AIMS_MS = {Shape(256, 11): 28.0, Shape(1024, 21): 200.0}

# GPU, at (16384, 21), d 192, bfloat16: milliseconds a layer of the floor, and how near to be.
GPU_SHAPE = Shape(16_384, 21)
GPU_FLOOR_MS = {"forward": 1.7, "forward + backward": 8.0}
LARGEST_GPU_FLOOR_RATIO = 2.0
LEAST_GPU_RATIO_TO_MAMBA_SSM = 10.0
GPU_WINS_FROM_LENGTH = 1000
