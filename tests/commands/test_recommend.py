import json

import pytest

from ftmamba import Recommender
from ftmamba.__main__ import main
from ftmamba.commands.recommend import recommendations_table
from ftmamba.recommender import Recommendation


def printed(capsys, *arguments):
    assert main(["recommend", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_json_is_what_the_recommender_returns(checkpoint_folder, capsys):
    recommender = Recommender.from_pretrained(checkpoint_folder)
    capsys.readouterr()
    for arguments, found in (
        (("--user", "u3"), recommender.recommend(user_key="u3", k=4)),
        (
            ("--user", "u3", "--include-seen"),
            recommender.recommend(user_key="u3", k=4, exclude_seen=False),
        ),
        (("--record", '{"age": 31}'), recommender.recommend(record={"age": 31}, k=4)),
        (("--similar-to", "i05"), recommender.similar_items("i05", k=4)),
    ):
        text = printed(capsys, checkpoint_folder, *arguments, "-k", 4, "--json")
        assert [Recommendation(**one) for one in json.loads(text)] == found


def test_the_table_is_aligned(checkpoint_folder, capsys):
    lines = printed(capsys, checkpoint_folder, "--user", "u3").splitlines()
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--user", "u33"), "no user 'u33' among the 12 known users"),
        (("--record", "{age: 3}"), "--record is not JSON"),
        (("--record", "[1]"), "--record must be a JSON object"),
        (("--record", '{"age": "old"}'), "age"),
        (("--user", "u3", "-k", "21"), "k must be a whole number from 1 to 20"),
        (("--similar-to", "i99"), "no item 'i99'"),
    ],
)
def test_bad_input_is_one_line_on_the_error_stream(checkpoint_folder, arguments, message, capsys):
    assert main(["recommend", str(checkpoint_folder), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ftmamba: error: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_missing_checkpoint_is_named_with_the_near_one(checkpoint_folder, capsys):
    assert main(["recommend", str(checkpoint_folder.parent / "tiney"), "--user", "u3"]) == 2
    assert "did you mean 'tiny'?" in capsys.readouterr().err
