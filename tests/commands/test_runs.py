import csv
import json
import os

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


@pytest.mark.parametrize(
    "results",
    [
        {"models": []},
        {"models": None},
        {"models": {"FT": 3}},
        {"models": {"FT": {"metrics": [1]}}},
        {"models": {"FT": {"metrics": {"NDCG@10": "good"}}}},
        {"models": {"FT": {"metrics": {"NDCG@10": None}}}},
        {"models": {"FT": {"metrics": {"NDCG@10": 10**400}}}},
        {"models": {"FT": {"metrics": {"NDCG@10": 0.1}, "intervals": {"NDCG@10": [1]}}}},
        {"models": {"FT": {"metrics": {"NDCG@10": 0.1}, "intervals": {"NDCG@10": "ab"}}}},
        {"models": {"FT": {"metrics": {"NDCG@10": 0.1}}}, "cost": "dear"},
        {"models": {"FT": {"metrics": {"NDCG@10": 0.1}}}, "cost": {"seconds": {}}},
    ],
    ids=str,
)
def test_results_of_another_form_are_refused_in_words(folder, results):
    (folder / "a" / "all_results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=r"the results in '.*/a' are damaged, or not of this"):
        find_runs(folder)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("all_results.json", "{"),
        ("all_results.json", "[]"),
        ("all_results.json", "[" * 100_000),
        ("all_results.json", '{"models": NaN}'),
        ("all_results.json", '{"a": ' + "9" * 5000 + "}"),
        ("all_results.json", "\ud800"),
        ("recipe.yaml", "a: &a [x, x]\nb: &b [*a, *a]\n"),
        ("recipe.yaml", "[" * 10_000),
        ("recipe.yaml", "- 1"),
        ("recipe.yaml", "!!python/object/apply:os.system [true]"),
        ("recipe.yaml", "a: 2020-99-99"),
    ],
    ids=range(11),
)
def test_files_of_another_form_are_refused_in_words(folder, name, text):
    (folder / "a" / name).write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(ValueError, match=r"the results in '.*/a' are damaged, or not of this"):
        find_runs(folder)


@pytest.mark.parametrize("name", ["all_results.json", "recipe.yaml"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(folder, name):
    (folder / "a" / name).unlink()
    os.mkfifo(folder / "a" / name)
    with pytest.raises(ValueError, match="is no regular file"):
        find_runs(folder)


def test_a_recipe_of_a_stranger_is_shown_in_part(folder):
    hostile = "\x1b]0;owned\x07|" + "x" * 10_000
    recipe = {"data": hostile[:2000], "split": {"kind": [hostile[:1000]]}}
    (folder / "a" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    table = as_markdown(run_table(find_runs(folder), "NDCG@10"))
    assert len(table) < 4_000
    assert "\x1b" not in table
