import pytest
import yaml

from ftmamba.__main__ import main
from ftmamba.data.schema import Schema

USERS = "user_id,age,gender\n0001,31,F\n0002,25,M\n0003,44,F\n0004,19,M\n"
ITEMS = "item_id,title,genres\na,Toy Story,fun|kids\nb,Heat,war|fun\nc,Alien,war\nd,Big,fun|war\n"
INTERACTIONS = "user_id,item_id,timestamp,rating\n0001,a,893286638,5\n0002,b,893286700,3\n"


@pytest.fixture
def paths(tmp_path):
    found = []
    for name, text in (("users", USERS), ("items", ITEMS), ("interactions", INTERACTIONS)):
        path = tmp_path / f"{name}.csv"
        path.write_text(text)
        found.append(str(path))
    return found


def test_the_printed_schema_reads_back_as_a_schema(paths, capsys):
    assert main(["schema", *paths]) == 0
    text = capsys.readouterr().out
    assert text.startswith("# Inferred from the files")
    schema = Schema.from_dict(yaml.safe_load(text)["schema"])
    assert (schema.users.key, schema.items.key, schema.items.title) == (
        "user_id", "item_id", "title",
    )  # fmt: skip
    assert schema.interactions.time == "timestamp"
    kinds = {column.name: column.kind for column in schema.users.columns}
    assert kinds["age"] == "numeric"


def test_a_missing_file_is_named(paths, capsys):
    missing = paths[0].replace("users", "user")
    assert main(["schema", missing, *paths[1:]]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "user.csv" in err
    assert "did you mean" in err
    assert err.count("\n") == 1
