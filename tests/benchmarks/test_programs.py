"""The programs run from end to end, tiny."""

import json
import sys

import pytest

from benchmarks import gpu, run_all
from benchmarks.speed import towers
from benchmarks.speed.contenders import cpu_contenders
from benchmarks.speed.gpu_cost import tower_cost
from benchmarks.speed.latency import latencies, scan_rates
from benchmarks.speed.measure import Limits, cpu_timer
from benchmarks.speed.memory import in_fresh_process
from benchmarks.speed.results import read_result, write_result
from benchmarks.speed.scaling import scale
from benchmarks.speed.targets import Shape
from benchmarks.speed.tower_cell import Cell, prepare, time_mode

TINY = Limits(2, 0.0, visit=0.0)


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_a_cell_times_every_tower_and_says_what_is_left_out(mode):
    cell = Cell(64, Shape(2, 3))
    prepare(cell, ["mamba", "ftt 32", "transformers", "deeptab"])
    found = time_mode(cell, mode, cpu_timer, TINY)
    timed = set(found["times"])
    assert {"mamba", "ftt 32", "transformers"} <= timed
    assert ("deeptab" in timed) != ("deeptab" in found["left_out"])
    assert set(cell.errors) == {"mamba", "ftt 32"}
    assert all(len(one["ms"]) == 2 and min(one["ms"]) > 0 for one in found["times"].values())
    assert set(found["scans"]) == {"mamba"}


def test_a_rival_that_would_take_too_long_is_timed_in_part_and_multiplied():
    whole = Cell(64, Shape(16, 5))
    part = Cell(64, Shape(16, 5), longest=0.0)
    for cell in (whole, part):
        prepare(cell, ["transformers"])
    times = [time_mode(cell, "infer", cpu_timer, TINY)["times"] for cell in (whole, part)]
    of_whole, of_part = (one["transformers"] for one in times)
    assert (of_whole["layers"], of_whole["batch"]) == (4, 16)
    assert (of_part["layers"], of_part["batch"]) == (1, 2)
    # Overhead is multiplied too, so it seems slower, by far less than the 32 times that it is not.
    assert 1 < min(of_part["ms"]) / min(of_whole["ms"]) < 60


def test_a_cell_is_run_in_a_process_and_its_lines_are_kept_once(monkeypatch):
    job = towers.Job(Shape(2, 3), 64, 1, towers.Pace(2, 0.0, 1.0), ("mlp",))
    printed = [
        {"threads": 1, "size": 64, "batch": 2, "length": 3, "errors": {}, "refused": {}},
        {"threads": 1, "size": 64, "batch": 2, "length": 3, "mode": "train", "times": {}},
    ]
    command = [sys.executable, "-c", f"print({chr(10).join(map(json.dumps, printed))!r})"]
    monkeypatch.setattr(towers.Job, "command", property(lambda _: command))
    result = {"checks": [], "cells": [], "failed": []}
    for _ in range(2):
        towers.run_job(job, result)
    assert result == {"checks": printed[:1], "cells": printed[1:], "failed": []}


def test_a_cell_that_crashes_is_reported_and_loses_no_line(monkeypatch):
    line = {"threads": 1, "size": 64, "batch": 2, "length": 3, "mode": "train"}
    code = f"import os; print({json.dumps(line)!r}, flush=True); os._exit(139)"
    monkeypatch.setattr(towers.Job, "command", property(lambda _: [sys.executable, "-c", code]))
    result = {"checks": [], "cells": [], "failed": []}
    towers.run_job(towers.Job(Shape(2, 3), 64, 1, towers.QUICK), result)
    assert result["cells"] == [line]
    assert "139" in result["failed"][0]["problem"]


def test_memory_of_a_training_step_is_measured_in_a_fresh_process():
    done = in_fresh_process("ftt 32", 512, 21)
    assert done.returncode == 0, done.stderr
    # What one layer keeps of a token is 5 to 30 times its 64 channels.
    assert 5 < json.loads(done.stdout) / (4 * 512 * 21 * 64 * 4 / 1e6) < 30


def test_lines_of_the_plot_hold_a_record_at_every_length():
    contenders = [cpu_contenders()["mlp"], cpu_contenders()["ftt 32"]]
    lines = scale(contenders, "infer", [3, 30], 60, cpu_timer, TINY)
    assert [line["name"] for line in lines] == ["mlp", "ftt 32"]
    assert [point["batch"] for point in lines[0]["points"]] == [20, 2]
    assert all(point["ms_a_record"] > 0 for line in lines for point in line["points"])


def test_latency_and_the_scan_alone_are_measured():
    left_out = {}
    ms = latencies(cpu_timer, TINY, left_out)
    assert {"mamba", "ftt 32", "transformers"} <= set(ms)
    rates = scan_rates(Shape(2, 9), cpu_timer, TINY, left_out)
    parts = {(one["name"], one["part"]) for one in rates}
    assert {("sequential", "forward"), ("sequential", "backward")} <= parts
    found = rates[0]
    n_elements = 2 * 9 * 128 * 16
    assert found["gelem"] == pytest.approx(n_elements / 1e6 / found["median"], rel=1e-2)


def test_the_gpu_program_runs_on_a_cpu_and_marks_its_result(tmp_path, monkeypatch):
    output = tmp_path / "gpu.json"
    monkeypatch.setattr(gpu, "ODD_LENGTH", 13)
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--quick", "--output", str(output)])
    gpu.main()
    result = read_result(output)
    assert (result["device"], result["quick"]) == ("cpu", True)
    assert set(result["ceiling"]["flops_a_second"]) == {"torch.bfloat16", "torch.float32"}
    places = {(one["dtype"], one["mode"], one["length"]) for one in result["cells"]}
    assert len(places) == 2 * 2 * 2
    assert len(result["layers"]) == 4
    for entry in (*result["cells"], *result["layers"]):
        assert {"mamba", "mamba, sequential", "ftt 32", "ftt 64 fused"} <= set(entry["times"])
        assert "mamba_ssm" in entry["left_out"]
        for found in entry["times"].values():
            assert found["gflop"] > 0
            assert found["gbyte"] > 0
            assert found["of_ceiling"] > 0
    checked = {(one["name"], one["length"]) for one in result["checks"]}
    assert {("mamba", 11), ("mamba", 13), ("attention", 41)} <= checked


def test_out_of_time_the_gpu_program_stops_and_keeps_what_it_has(tmp_path, monkeypatch):
    output = tmp_path / "gpu.json"
    monkeypatch.setattr(gpu, "check_all", lambda *_: {dtype: [] for dtype in gpu.DTYPES})
    words = ["gpu", "--device", "cpu", "--quick", "--minutes", "0", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match="out of time"):
        gpu.main()
    assert read_result(output)["cells"] == []


def test_attention_costs_more_a_token_on_long_records_and_mamba_does_not():
    def cost(name, length):
        return tower_cost(name, 192, length, 1000, train=False).flops

    assert cost("mamba", 10_000) == cost("mamba", 11)
    assert cost("ftt 64", 10_000) > 10 * cost("ftt 64", 11)
    # Linear maps of one of our layers by hand: 2 (6 D^2 + E (2 R + 2 N)) FLOPs a token.
    inner, rank, state = 384, 12, 16
    by_hand = 2 * (6 * 192**2 + inner * (2 * rank + 2 * state))
    assert 3 * by_hand * 1000 < cost("mamba", 11) < 4 * 1.3 * by_hand * 1000


def test_a_benchmark_that_fails_does_not_stop_the_others(tmp_path, monkeypatch, capfd):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks/fails.py").write_text("raise SystemExit(3)")
    (tmp_path / "benchmarks/works.py").write_text("print('{\"ms\": 5}')")
    fake = (
        run_all.Benchmark("absent", "absent"),
        run_all.Benchmark("needy", "works", needs=tmp_path / "nowhere"),
        run_all.Benchmark("fails", "fails"),
        run_all.Benchmark("works", "works"),
        run_all.Benchmark("long", "fails", quick_options=None),
    )
    reported = []
    monkeypatch.setattr(run_all, "BENCHMARKS", fake)
    monkeypatch.setattr(run_all, "ROOT", tmp_path)
    monkeypatch.setattr(run_all, "write_report", reported.append)
    monkeypatch.setattr(sys, "argv", ["run_all", "--quick", "--folder", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        run_all.main()
    told = str(stopped.value).splitlines()
    assert told[0] == "absent: there is no benchmarks/absent.py"
    assert "make quickstart" in told[1]
    assert told[2] == "fails: exit code 3"
    assert len(told) == 3
    assert read_result(tmp_path / "performance/works.json")["figures"] == {"ms": 5}
    assert reported == [tmp_path]
    assert "works: done" in capfd.readouterr().out


def test_every_benchmark_of_the_list_has_its_program():
    for benchmark in run_all.BENCHMARKS:
        path = f"benchmarks/{benchmark.module.replace('.', '/')}.py"
        assert (run_all.ROOT / path).exists(), path


def test_a_result_file_has_a_line_an_entry_and_reads_back(tmp_path):
    result = {"benchmark": "x", "cells": [{"a": 1}, {"a": 2}], "none": []}
    write_result(tmp_path / "folder/x.json", result)
    text = (tmp_path / "folder/x.json").read_text(encoding="utf-8")
    assert '\n  {"a": 1},\n  {"a": 2}\n' in text
    assert read_result(tmp_path / "folder/x.json") == result
    assert read_result(tmp_path / "nothing.json") is None
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["x.json"]
