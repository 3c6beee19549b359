import csv
import json

import pytest
import yaml

from ftmamba.commands.runs import as_csv, as_markdown, find_runs, run_table


def write_run(folder, ndcg, *, name="FT-Mamba", others=None, kind="global-time"):
    def model(value):
        return {
            "metrics": {"NDCG@10": value, "HR@10": 0.5, "coverage@10": 0.1},
            "intervals": {"NDCG@10": [value - 0.01, value + 0.01]},
            "n_users": 77,
        }

    folder.mkdir(parents=True)
    results = {
        "models": {name: model(ndcg)} | {k: model(v) for k, v in (others or {}).items()},
        "n_parameters": 1234,
        "cost": {"seconds": 61.4},
        "seed": 7,
    }
    (folder / "all_results.json").write_text(json.dumps(results))
    recipe = {"data": {"name": "films"}, "split": {"kind": kind}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


@pytest.fixture
def folder(tmp_path):
    write_run(tmp_path / "a", 0.2, others={"EASE": 0.25, "popularity": 0.1})
    write_run(tmp_path / "deep" / "b", 0.3, name="=cmd|'/c calc'!A0", kind="random")
    return tmp_path


def test_the_best_run_is_on_top_with_all_that_tells_runs_apart(folder):
    head, best, second = run_table(find_runs(folder), "NDCG@10")
    assert dict(zip(head, second, strict=True)) == {
        "run": "a",
        "model": "FT-Mamba",
        "NDCG@10 [95 %]": "0.200 [0.190, 0.210]",
        "HR@10": "0.500",
        "R@10": "",
        "MRR@10": "",
        "coverage@10": "0.100",
        "best other": "EASE 0.250",
        "parameters": "1234",
        "training s": "61",
        "seed": "7",
        "data": "films",
        "split": "global-time",
        "test users": "77",
    }
    assert best[0] == "deep/b"


def test_markdown_rows_have_one_width(folder):
    lines = as_markdown(run_table(find_runs(folder), "NDCG@10")).split("\n")
    assert len(lines) == 4
    assert len(set(map(len, lines))) == 1
    assert r"=cmd\|'/c calc'!A0" in lines[2]


def test_csv_is_read_back_and_holds_no_formula(folder):
    rows = run_table(find_runs(folder), "NDCG@10")
    again = list(csv.reader(as_csv(rows).splitlines()))
    assert again[0] == rows[0]
    assert again[1][1] == "'=cmd|'/c calc'!A0"
    assert again[2] == rows[2]


def test_a_folder_that_is_a_run_is_a_table_of_one(folder):
    assert [name for name, _, _ in find_runs(folder / "a")] == ["a"]


def test_a_run_of_another_metric_is_left_out_and_an_unknown_one_refused(folder):
    assert len(run_table(find_runs(folder), "HR@10")) == 3
    with pytest.raises(ValueError, match=r"no run has the metric 'NDGC@10'; did you mean 'NDCG@10"):
        run_table(find_runs(folder), "NDGC@10")


def test_no_folder_no_run_and_damaged_runs_are_told(folder):
    with pytest.raises(FileNotFoundError, match="name one that holds finished runs"):
        find_runs(folder / "none")
    (folder / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no finished run in .*empty"):
        find_runs(folder / "empty")
    (folder / "a" / "all_results.json").write_text("{")
    with pytest.raises(ValueError, match=r"the results in '.*/a' are damaged"):
        find_runs(folder)
    (folder / "a" / "all_results.json").write_text("[]")
    with pytest.raises(ValueError, match="are not of this program"):
        find_runs(folder)
