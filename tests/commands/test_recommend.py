import json

import pytest

from ftmamba import Recommender
from ftmamba.__main__ import main
from ftmamba.commands.recommend import explanation_table, parse_record, recommendations_table
from ftmamba.explanations import Explanation
from ftmamba.recommender import Recommendation

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
    assert main([*map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_json_is_what_the_recommender_returns(checkpoint_folder, capsys):
    recommender = Recommender.from_pretrained(checkpoint_folder)
    capsys.readouterr()
    for arguments, found in (
        (("--user", "u3"), recommender.recommend(user_key="u3", k=4)),
        (
            ("--user", "u3", "--no-exclude-seen"),
            recommender.recommend(user_key="u3", k=4, exclude_seen=False),
        ),
        (("--record", '{"age": 31}'), recommender.recommend(record={"age": 31}, k=4)),
        (("--similar-to", "i05"), recommender.similar_items("i05", k=4)),
    ):
        text = printed(capsys, "recommend", checkpoint_folder, *arguments, "-k", 4, "--json")
        assert [Recommendation(**one) for one in json.loads(text)] == found
    for who, user in ((("--user", "u3"), "u3"), (("--record", '{"age": 31}'), {"age": 31})):
        text = printed(capsys, "explain", checkpoint_folder, *who, "--item", "i05", "--json")
        assert Explanation(**json.loads(text)) == recommender.explain(user, "i05")


def test_the_table_is_aligned(checkpoint_folder, capsys):
    lines = printed(capsys, "recommend", checkpoint_folder, "--user", "u3").splitlines()
    assert lines[0].split() == ["rank", "score", "item", "title"]
    assert len(lines) == 11
    starts = {line.index("i") for line in lines}
    assert len(starts) == 1
    assert {line.index("Film") for line in lines[1:]} == {lines[0].index("title")}


def test_the_table_of_untitled_items_has_no_title_column():
    table = recommendations_table(
        [Recommendation("a", 1.5, ""), Recommendation("long key", -2.25, "")]
    )
    assert table == "rank    score  item\n   1   1.5000  a\n   2  -2.2500  long key"


def test_a_title_of_two_lines_stays_on_its_row():
    assert (
        recommendations_table([Recommendation("a", 1.0, "x\n  y")])
        .splitlines()[1]
        .endswith("a     x y")
    )


def test_an_explanations_table_shows_the_sum_and_the_strongest_first():
    assert explanation_table(FOUND).splitlines() == [
        "item 50 (Star Wars)",
        "score 2.5000 = 1.0000 with all columns missing +0.2500 user +1.2500 item",
        "   adds  of    column  value",
        "+1.2500  item  genres  war, drama",
        "+0.5000  user  age     31",
        "-0.2500  user  job     doctor",
    ]


def test_an_explanations_table_says_when_shares_are_estimates():
    estimated = Explanation(**{**FOUND.to_dict(), "standard_error": 0.0123, "title": ""})
    lines = explanation_table(estimated).splitlines()
    assert lines[0] == "item 50"
    assert lines[2] == "shares are estimates; standard error 0.012"


def test_a_picture_is_drawn_where_it_is_asked_for(checkpoint_folder, capsys, tmp_path):
    target = tmp_path / "why.png"
    text = printed(
        capsys, "explain", checkpoint_folder, "--user", "u3", "--item", "i05", "--plot", target
    )
    assert "occupation" in text
    assert target.read_bytes()[1:4] == b"PNG"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("recommend --user u33", "no user 'u33' among the 12 known users"),
        ("recommend --record {age:3}", "--record is not JSON"),
        ("recommend --record [1]", "--record must be a JSON object"),
        ('recommend --record {"age":"old"}', "age"),
        ("recommend --user u3 -k 21", "k must be a whole number from 1 to 20"),
        ("recommend --similar-to i99", "no item 'i99'"),
        ("explain --item i05 --user u33", "no user 'u33' among the 12 known users"),
        ("explain --item i99 --user u3", "no item 'i99' among the 20"),
        ("explain --item i05 --record {", "--record is not JSON"),
    ],
)
def test_bad_input_is_one_line_on_the_error_stream(checkpoint_folder, command, message, capsys):
    name, *arguments = command.split()
    assert main([name, str(checkpoint_folder), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ftmamba: error: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_missing_checkpoint_is_named_with_the_near_one(checkpoint_folder, capsys):
    assert main(["recommend", str(checkpoint_folder.parent / "tiney"), "--user", "u3"]) == 2
    assert "did you mean 'tiny'?" in capsys.readouterr().err


def test_a_record_with_a_column_twice_is_refused():
    with pytest.raises(ValueError, match="the key 'age' occurs twice"):
        parse_record('{"age": 31, "age": 99}')
