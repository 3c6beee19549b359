import csv
import json

import pytest
import yaml

from ftmamba.commands.runs import as_csv, as_markdown, find_runs, run_table


def write_run(folder, ndcg, *, name="FT-Mamba", others=None, kind="global-time"):
    def model(value):
        metrics = {"NDCG@10": value, "HR@10": 0.5, "coverage@10": 0.1}
        interval = {"NDCG@10": [value - 0.01, value + 0.01]}
        return {"metrics": metrics, "intervals": interval, "n_users": 77}

    folder.mkdir(parents=True)
    models = {name: model(ndcg)} | {k: model(v) for k, v in (others or {}).items()}
    results = {"models": models, "n_parameters": 1234, "cost": {"seconds": 61.4}, "seed": 7}
    (folder / "all_results.json").write_text(json.dumps(results))
    recipe = {"data": {"name": "films"}, "split": {"kind": kind}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


@pytest.fixture
def folder(tmp_path):
    write_run(tmp_path / "a", 0.2, others={"EASE": 0.25, "popularity": 0.1})
    write_run(tmp_path / "deep" / "b", 0.3, name="=cmd|'/c calc'!A0", kind="random")
    return tmp_path


def test_the_best_run_is_on_top_with_all_that_distinguishes_runs(folder):
    head, best, second = run_table(find_runs(folder), "NDCG@10")
    assert head == ["run", "model", "NDCG@10 [95 %]", "HR@10", "R@10", "MRR@10", "coverage@10",
                    "best other", "parameters", "training s", "seed", "data", "split",
                    "test users"]  # fmt: skip
    assert second == ["a", "FT-Mamba", "0.200 [0.190, 0.210]", "0.500", "", "", "0.100",
                      "EASE 0.250", "1234", "61", "7", "films", "global-time", "77"]  # fmt: skip
    assert best[0] == "deep/b"
    assert [name for name, _, _ in find_runs(folder / "a")] == ["a"]


def test_markdown_rows_have_one_width_and_csv_holds_no_formula(folder):
    rows = run_table(find_runs(folder), "NDCG@10")
    lines = as_markdown(rows).split("\n")
    assert len(lines) == 4
    assert len(set(map(len, lines))) == 1
    assert r"=cmd\|'/c calc'!A0" in lines[2]
    again = list(csv.reader(as_csv(rows).splitlines()))
    assert again[1][1] == "'=cmd|'/c calc'!A0"
    assert [again[0], again[2]] == [rows[0], rows[2]]


def test_an_unknown_metric_is_refused(folder):
    assert len(run_table(find_runs(folder), "HR@10")) == 3
    with pytest.raises(ValueError, match=r"no run has the metric 'NDGC@10'; did you mean 'NDCG@10"):
        run_table(find_runs(folder), "NDGC@10")


def test_missing_and_damaged_runs_are_named(folder):
    with pytest.raises(FileNotFoundError, match="name one that holds finished runs"):
        find_runs(folder / "none")
    (folder / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no finished run in .*empty"):
        find_runs(folder / "empty")
    for text, message in (("{", "are damaged"), ("[]", "are not of this program")):
        (folder / "a" / "all_results.json").write_text(text)
        with pytest.raises(ValueError, match=rf"the results in '.*/a' {message}"):
            find_runs(folder)
