"""From times to ratios, verdicts and exponents."""

from benchmarks.speed.figures import best_ft_transformer, find, ratio
from benchmarks.speed.measure import Spread
from benchmarks.speed.memory import memory_ratio
from benchmarks.speed.scaling import summary
from benchmarks.speed.targets import SHAPES, Shape


def cell(shape=SHAPES[0], mode="train", size=64, threads=1, left_out=None, **ms):
    names = {name.replace("_", " "): values for name, values in ms.items()}
    return {
        "batch": shape.batch,
        "length": shape.length,
        "mode": mode,
        "size": size,
        "threads": threads,
        "times": {name: {"ms": values, "layers": 4} for name, values in names.items()},
        "left_out": left_out or {},
        "scans": {"mamba": "cpu"},
    }


def test_the_best_ft_transformer_is_the_fastest_variant_ours_included():
    assert best_ft_transformer(cell(ftt_32=[5, 6], ftt_8_heads=[9], mamba=[1])) == "ftt 32"
    assert best_ft_transformer(cell(ftt_32=[5, 6], attention=[4, 4.5])) == "attention"
    assert best_ft_transformer(cell(mamba=[1])) is None


def test_ratios_are_taken_round_by_round():
    found = ratio(cell(transformers=[20.0, 60.0], mamba=[1.0, 2.0, 100.0]), "transformers")
    assert found == Spread(25.0, 22.5, 27.5)
    assert ratio(cell(mamba=[1.0]), "transformers") is None


def test_a_cell_is_found_by_all_that_names_it():
    cells = [cell(), cell(mode="infer"), cell(threads=2)]
    assert find(cells, SHAPES[0], "infer") is cells[1]
    assert find(cells, SHAPES[0], "train", threads=2) is cells[2]
    assert find(cells, Shape(1, 1), "train") is None


def test_a_line_is_summed_up_by_exponent_and_dearest_token():
    points = [(10, 1.0), (100, 20.0), (1000, 100.0)]
    line = {"points": [{"length": x, "ms_a_record": y} for x, y in points]}
    assert summary(line) == {"token_cost_ratio": 2.0, "exponent": 1.0}


def test_memory_is_compared_with_the_thriftiest_ft_transformer():
    assert memory_ratio({"mamba": 30.0, "ftt 32": 20.0, "attention": 15.0, "mlp": 1.0}) == 2.0
    assert memory_ratio({"mamba": 30.0}) is None
