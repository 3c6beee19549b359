import json

import pytest

from ftmamba import Recommender
from ftmamba.__main__ import main
from ftmamba.commands.recommend import explanation_table
from ftmamba.explanations import Explanation

FOUND = Explanation(
    item_key="50",
    title="Star Wars",
    score=2.5,
    baseline_score=1.0,
    user={"age": 0.5, "job": -0.25},
    item={"genres": 1.25},
    user_values={"age": "31", "job": "doctor"},
    item_values={"genres": "war,\ndrama"},
    standard_error=0.0,
)


def printed(capsys, *arguments):
    assert main(["explain", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_json_is_what_the_recommender_returns(checkpoint_folder, capsys):
    recommender = Recommender.from_pretrained(checkpoint_folder)
    capsys.readouterr()
    for who, user in ((("--user", "u3"), "u3"), (("--record", '{"age": 31}'), {"age": 31})):
        text = printed(capsys, checkpoint_folder, *who, "--item", "i05", "--json")
        assert Explanation(**json.loads(text)) == recommender.explain(user, "i05")


def test_the_table_shows_the_sum_and_the_strongest_first():
    assert explanation_table(FOUND).splitlines() == [
        "item 50 (Star Wars)",
        "score 2.5000 = 1.0000 with all columns missing +0.2500 user +1.2500 item",
        "   adds  of    column  value",
        "+1.2500  item  genres  war, drama",
        "+0.5000  user  age     31",
        "-0.2500  user  job     doctor",
    ]


def test_the_table_says_when_shares_are_estimates():
    estimated = Explanation(**{**FOUND.to_dict(), "standard_error": 0.0123, "title": ""})
    lines = explanation_table(estimated).splitlines()
    assert lines[0] == "item 50"
    assert lines[2] == "shares are estimates; standard error 0.012"


def test_a_picture_is_drawn_where_it_is_asked_for(checkpoint_folder, capsys, tmp_path):
    target = tmp_path / "why.png"
    text = printed(capsys, checkpoint_folder, "--user", "u3", "--item", "i05", "--plot", target)
    assert "occupation" in text
    assert target.read_bytes()[1:4] == b"PNG"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--user", "u33", "--item", "i05"), "no user 'u33' among the 12 known users"),
        (("--user", "u3", "--item", "i99"), "no item 'i99' among the 20"),
        (("--record", "{", "--item", "i05"), "--record is not JSON"),
    ],
)
def test_a_wrong_question_ends_with_its_reason(checkpoint_folder, capsys, arguments, message):
    assert main(["explain", str(checkpoint_folder), *arguments]) == 2
    assert message in capsys.readouterr().err
