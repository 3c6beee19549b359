"""docs/performance.md says what the files in docs/performance/ say, and nothing else."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.speed.plots import log_log_plot
from benchmarks.speed.report import documents
from benchmarks.speed.results import write_result
from benchmarks.speed.targets import RATIO_TARGETS, SHAPES

DOCS = Path(__file__).parents[1] / "docs"
ENVIRONMENT = {
    "processor": "A Processor",
    "flags": ["avx512f"],
    "cores": 2,
    "memory_gib": 8.0,
    "system": "Linux x86_64",
    "python": "3.11.7",
    "versions": {"torch": "2.13.0"},
    "commit": "abc+",
    "date": "2026-01-02",
}

FIGURES = {
    "machine": "said above",
    "rows": {"a_second": 12.5},
    "ms": {"median": 2.0, "min": 1.0, "max": 3.0},
}


def header(name, **fields):
    return {"benchmark": name, "quick": False, "environment": ENVIRONMENT, **fields}


def tower_cell(shape, mode, **ms):
    times = {name.replace("_", " "): one for name, one in ms.items()}
    return {
        "threads": 1,
        "size": 64,
        "batch": shape.batch,
        "length": shape.length,
        "mode": mode,
        "clock": "CPU time",
        "times": {
            name: {"layers": 4, "batch": shape.batch, "ms": one} for name, one in times.items()
        },
        "left_out": {"deeptab": "deeptab is not installed here"},
        "scans": {"mamba": "cpu"},
    }


def gpu_cell(length, **ms):
    return {
        "dtype": "bfloat16",
        "mode": "infer",
        "batch": 16384,
        "length": length,
        "times": {
            name.replace("_", " ") if name != "mamba_ssm" else name: {
                "median_ms": value, "ms": [value], "of_ceiling": 0.5, "scan": "triton",
            }
            for name, value in ms.items()
        },
        "left_out": {},
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """Made-up results of everything."""
    reached = tower_cell(SHAPES[0], "train", mamba=[2.0, 2.0], transformers=[40.0], ftt_32=[3.0])
    short = tower_cell(SHAPES[1], "train", mamba=[4.0], transformers=[40.0], ftt_32=[3.0])
    short["times"]["transformers"].update(layers=1, batch=128)
    errors = {"mamba": {"value": 2e-7, "gradient": 3e-6, "worst": "A_log"}}
    checks = [{"threads": 1, "size": 64, "batch": 1, "length": 1, "errors": errors}]
    line = {
        "mode": "train",
        "name": "mamba",
        "points": [{"length": x, "ms_a_record": x / 10} for x in (10, 100, 1000)],
    }
    scan = {"name": "cpu", "part": "forward", "batch": 32, "length": 200, "gelem": 9.5}
    results = [
        header("towers", cells=[reached, short], checks=checks),
        header("memory", batch=2, length=3, size=64, megabytes={"mamba": 30.0, "ftt 32": 10.0}),
        header("scaling", size=64, tokens=1000, lines=[line]),
        header(
            "latency",
            size=64,
            batch=1,
            length=11,
            ms={"mamba": {"median": 0.3, "quartiles": [0.2, 0.5]}},
            scans=[scan],
        ),
        header("data_path", command="python data_path.py", figures=FIGURES),
        header("evaluation", command="python evaluation.py", output=["as printed"]),
    ]
    for result in results:
        write_result(tmp_path / f"{result['benchmark']}.json", result)
    return tmp_path


def test_the_document_is_what_the_generator_makes_of_the_committed_results():
    made = documents(DOCS / "performance")
    assert "performance.md" in made
    for name, text in made.items():
        assert (DOCS / name).read_text(encoding="utf-8") == text, (
            f"docs/{name} is out of date; run python -m benchmarks.speed.report"
        )
    drawn = {f"performance/{path.name}" for path in (DOCS / "performance").glob("*.svg")}
    assert drawn == set(made) - {"performance.md"}


def test_without_results_every_section_says_not_measured(tmp_path):
    made = documents(tmp_path)
    assert list(made) == ["performance.md"]
    sections = made["performance.md"].split("\n## ")[1:]
    titles = [section.splitlines()[0] for section in sections]
    assert len(titles) == 8
    for section in sections:
        assert "Not measured" in section or section.startswith("How to repeat it"), section


def test_targets_are_marked_where_they_are_reached_and_where_not(folder):
    text = documents(folder)["performance.md"]
    rows = [line for line in text.splitlines() if line.startswith(f"| {RATIO_TARGETS[0].title}")]
    assert rows == [
        "| train, times faster than transformers | **20** [20, 20], target 15 ✓ "
        "| **10** [10, 10], target 20 ✗ | not measured (target 30) | not measured (target 110) "
        "| not measured (target 400) | - |"
    ]
    assert "**1.5** [1.5, 1.5], target 1 ✓ | **0.75** [0.75, 0.75], target 1.1 ✗" in text
    assert "| train | heads of 32 | heads of 32 | - |" in text
    assert "40 [40, 40] (from one layer, batch 128)" in text
    assert "FT-Mamba ran with the scan: cpu." in text
    assert "Training (256, 11) takes 2 ms; 28 was aimed at." in text
    assert "Largest error of a gradient against float64: 3e-06." in text
    assert "DeepTab's Mamba block: deeptab is not installed here" in text


def test_one_machine_is_named_once_and_a_quick_run_is_called_so(folder):
    write_result(folder / "embedding.json", {
        **header("embedding", command="python embedding.py", figures={}), "quick": True,
    })  # fmt: skip
    text = documents(folder)["performance.md"]
    places = [line for line in text.splitlines() if "A Processor (avx512f), 2 cores" in line]
    assert len(places) == 2
    assert next(line for line in places if "not the result" in line).startswith("- embedding: ")


def test_a_gpu_is_reported_with_its_ceiling_and_targets(folder):
    ceiling = {"bytes_a_second": 3e12, "flops_a_second": {"torch.bfloat16": 7e14}}
    layer = gpu_cell(21, mamba=3.0, mamba_ssm=36.0)
    towers = [gpu_cell(21, mamba=3.0, ftt_64=2.0), gpu_cell(1000, mamba=3.0, ftt_64=6.0)]
    gpu = header("gpu", device="cuda", size=192, ceiling=ceiling, layers=[layer], cells=towers)
    gpu |= {"refused": {}, "checks": []}
    gpu["environment"] = {**ENVIRONMENT, "gpu": "A GPU", "cuda": "13.0"}
    write_result(folder / "gpu.json", gpu)
    text = documents(folder)["performance.md"]
    assert "A GPU, CUDA 13.0" in text
    assert "3,000 GB/s of copying, 700 TFLOP/s in bfloat16" in text
    assert "1.8 times the floor of 1.7 ms, at most 2 ✓; 12 times faster than mamba-ssm" in text
    assert "**0.667** [0.667, 0.667] |" in text
    assert "**2** [2, 2], above 1 ✓ | FT-Transformer, heads of 64 |" in text


def test_a_try_on_a_cpu_is_no_measurement_of_a_gpu(folder):
    gpu = header("gpu", device="cpu", size=64, cells=[gpu_cell(21, mamba=3.0)], layers=[])
    write_result(folder / "gpu.json", gpu)
    assert "## GPU\n\nNot measured" in documents(folder)["performance.md"]


def test_a_plot_is_well_formed_and_puts_larger_values_higher_and_further_right():
    lines = {"a < b": [(10, 1.0), (1000, 10.0)], "flat": [(10, 1.0), (1000, 1.0)]}
    picture = log_log_plot("Cost", "tokens", "ms", lines, [10, 1000])
    assert picture == log_log_plot("Cost", "tokens", "ms", lines, [10, 1000])
    root = ElementTree.fromstring(picture)
    space = "{http://www.w3.org/2000/svg}"
    dots = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in root.iter(f"{space}circle")]
    assert len(dots) == 4
    assert dots[0][0] < dots[1][0]
    assert dots[0][1] > dots[1][1]
    assert dots[2] == dots[0]
    labels = [text.text for text in root.iter(f"{space}text")]
    assert {"a < b", "flat", "1,000"} <= set(labels)
