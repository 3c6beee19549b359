"""The study of histories from end to end, tiny: runs are kept, found again, and reported."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks.sequences import __main__ as program
from benchmarks.sequences import report, runs, study, summary
from benchmarks.sequences.study import read_study

TINY = {
    "data": {"name": "ml-1m"},
    "schema": {
        "users": {"key": "user_id", "columns": {"history": {"kind": "history", "max_length": 8}}},
        "items": {"key": "item_id", "columns": {"item_id": "categorical"}},
        "interactions": {"user": "user_id", "item": "item_id"},
    },
    "split": "leave-last-out",
    "model": {"preset": "mamba4rec", "overrides": {"hidden_size": 8, "projection_size": 8}},
    "training": {"loss": "full_softmax", "sequences": "every", "batch_size": 8, "num_epochs": 2},
    "evaluation": {"refit": False},
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A study of two variants and a baseline over twelve users, and a folder to run it in."""
    rng = np.random.default_rng(0)
    lines = [f"{user} {item}" for user in range(1, 13) for item in rng.permutation(20)[:9] + 1]
    (tmp_path / "ml-1m.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/tiny.yaml").write_text(yaml.safe_dump(TINY))
    variants = {"first": None, "second": {"training": {"learning_rate": 0.01}}}
    (tmp_path / "tiny.yaml").write_text(
        yaml.safe_dump(
            {
                "recipe": str(tmp_path / "recipes/tiny.yaml"),
                "variants": variants,
                "refits": {"second, refitted": "second"},
                "baselines": ["popularity", "markov"],
                "tried_with": {"training": {"num_epochs": 1}},
                "tried": {"short, faster": {"training": {"learning_rate": 0.02}}},
            }
        )
    )
    monkeypatch.setattr(study, "FOLDER", tmp_path)
    monkeypatch.setattr(report, "STUDIES", {"tiny": "A tiny study"})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(place, *words):
    program.main(["run", "tiny", "--folder", str(place), *words])


def test_a_study_is_run_kept_and_reported(place, monkeypatch):
    run(place, "--seeds", "1", "2")
    kept = sorted(str(path.relative_to(runs.RUNS / "tiny")) for path in runs.RUNS.rglob("*.json"))
    networks = [
        f"{name}/{seed}" for name in ("first", "second", "second, refitted") for seed in (1, 2)
    ]
    assert kept == sorted(f"{name}.json" for name in [*networks, "markov/0", "popularity/0"])
    monkeypatch.setattr(
        program, "run_network", lambda *_, **__: pytest.fail("a run that is kept was made again")
    )
    run(place, "--seeds", "1", "2")
    program.main(["report"])
    figures = json.loads(report.FIGURES.read_text())["tiny"]
    models = figures["tested"]
    assert figures["tried"] == {}
    assert list(models) == ["first", "second", "second, refitted", "popularity", "markov"]
    assert len(models["first"]["test"]["masked"]["NDCG@10"]) == 2
    assert models["second"]["less"]["masked/NDCG@10"][0] == pytest.approx(
        np.mean(models["first"]["test"]["masked"]["NDCG@10"])
        - np.mean(models["second"]["test"]["masked"]["NDCG@10"]),
        abs=1e-6,
    )
    lines = report.TABLES.read_text().splitlines()
    assert [line for line in lines if line.startswith("| markov | - | 0.")]
    assert "±" in next(line for line in lines if line.startswith("| first | 2 |"))
    assert (place / "docs/results/sequences-tiny.svg").read_text().startswith("<?xml")


def test_what_is_chosen_by_reads_no_test(place, monkeypatch):
    monkeypatch.setattr(runs, "evaluate", lambda *_, **__: pytest.fail("the test was read"))
    program.main(["try", "tiny", "--folder", str(place)])
    facts = json.loads((runs.RUNS / "tiny/tried/short, faster/1.json").read_text())
    assert "test" not in facts
    assert facts["recipe"]["training"]["num_epochs"] == 1
    assert facts["recipe"]["training"]["learning_rate"] == 0.02
    found = summary.read_runs(runs.RUNS / "tiny/tried/short, faster")
    assert found is not None
    assert found.values == {}


def test_an_unknown_study_or_variant_is_told(place):
    with pytest.raises(ValueError, match="study must be one of tiny, got 'large'"):
        read_study("large")
    with pytest.raises(
        ValueError, match=r"has no variant 'first_'.*'first'.*it has: first, second"
    ):
        read_study("tiny").recipe("first_", 1, "")


def test_the_committed_tables_are_those_of_the_committed_figures():
    root = Path(__file__).parents[2]
    figures = json.loads((root / report.FIGURES).read_text(encoding="utf-8"))
    assert (root / report.TABLES).read_text(encoding="utf-8") == report.tables(figures)


def test_every_shipped_study_has_a_place_in_the_document():
    assert set(study.study_names()) == set(report.STUDIES)


@pytest.mark.parametrize("name", ["ml-1m", "amazon-beauty", "ml-100k"])
def test_the_shipped_studies_are_recipes(name):
    shipped = read_study(name)
    for variant in shipped.variants:
        assert not shipped.recipe(variant, 1, "data").evaluation.refit
    for variant in shipped.tried:
        shipped.tried_recipe(variant, 1, "data")
