"""From a file of interactions to a checkpoint, with one command and no recipe."""

from pathlib import Path

import pytest
from pyarrow import csv

import ftmamba
from ftmamba.__main__ import main
from ftmamba.recipe import Recipe
from tests.made_up_tables import checkerboard

SMALL = ["--num_epochs", "1", "--baselines", "popularity", "item-knn", "--overrides",
         "{hidden_size: 16, num_hidden_layers: 1, state_size: 4, projection_size: 16}"]  # fmt: skip


@pytest.fixture
def files(raw, tmp_path, monkeypatch):
    """Interactions and items in the working folder, the only one that is written to."""
    monkeypatch.chdir(tmp_path)
    csv.write_csv(raw["interactions"], "likes.csv")
    csv.write_csv(raw["items"], "items.csv")
    return ["--interactions", "likes.csv", "--items", "items.csv", "--cache_dir", "cache"]


def test_one_command_says_what_it_chose_trains_compares_and_recommends(files, capsys):
    assert main(["train", *files, *SMALL]) == 0
    printed = capsys.readouterr().out
    assert "112 interactions of 16 users with 16 items" in printed
    assert "items: key item_id; title title;" in printed
    for part in (
        "\n  split: ",
        "\n  model: ",
        "| FT-Mamba ",
        "| popularity ",
        "| item-kNN ",
        "User u",
    ):
        assert part in printed
    assert "Item " in printed.partition("User u")[2]
    assert printed.endswith("all_results.json: runs/likes\n")
    row = next(line for line in printed.splitlines() if line.startswith("| FT-Mamba "))
    assert main(["evaluate", "runs/likes"]) == 0
    figures = row.split("|")[2:]
    again = capsys.readouterr().out.splitlines()[-1].split("|")[2:]
    assert [one.strip() for one in again] == [one.strip() for one in figures]


def test_a_second_run_does_not_replace_the_first(files, capsys):
    (Path("runs") / "likes").mkdir(parents=True)
    items = checkerboard(16)
    assert main(["train", *files, *SMALL, "--examples.history", *items.item_keys[:2]]) == 0
    printed = capsys.readouterr().out
    names = items.item_titles[:2]
    assert f"Somebody who chose {', '.join(names)}\n  recommended\n" in printed
    assert printed.endswith("all_results.json: runs/likes-2\n")


def test_a_few_interactions_with_items_of_no_table_are_left_out_and_said(files, capsys, caplog):
    likes = Path("likes.csv")
    likes.write_text(likes.read_text() + "u3,unheard-of,1700009999\n")
    assert main(["train", *files, *SMALL]) == 0
    assert "dropped 1 of 113 interactions" in caplog.text
    assert "112 interactions of 16 users" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--interaction", "likes.csv"], "did you mean '--interactions'"),
        (["--interactions", "like.csv"], "did you mean 'likes.csv'"),
        (["--items", "items.csv"], "data lacks interactions"),
        (["--interactions", "likes.csv", "--num_epochs", "many"], "num_epochs must be a whole"),
        (["--interactions", "likes.csv", "--baselines", "popularty"], "did you mean 'popularity'"),
        (["--config", "no-such"], "no shipped one of that name"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(argv, words, files, capsys):
    assert main(["train", *argv]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("ftmamba: error: ")
    assert words in line


def test_a_recipe_is_run_from_its_values_and_gives_recommender_and_figures(files, tmp_path):
    values = {
        "data": {"interactions": "likes.csv", "items": "items.csv", "cache_dir": "cache"},
        "split": "random",
        "model": {"overrides": {"hidden_size": 16, "num_hidden_layers": 1}},
        "training": {"num_epochs": 1},
        "output_dir": "mine",
    }
    run = ftmamba.train(values)
    assert isinstance(run.recipe, Recipe)
    assert list(run.evaluation.models) == ["FT-Mamba"]
    assert len(run.recommender.recommend(user_key="u3", k=4)) == 4
    assert (tmp_path / "mine" / "model.safetensors").is_file()


def test_the_package_has_a_version():
    assert ftmamba.__version__[0].isdigit()
