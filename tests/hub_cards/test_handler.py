"""The endpoint's handler: answers by its schema, errors in words, from many threads at once."""

import importlib
import json
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest

import hub_cards.handler
from ftmamba.checkpoint import load_checkpoint
from hub_cards.handler import ANSWER_SCHEMA, MOST_RECORDS, REQUEST_SCHEMA, EndpointHandler
from modeling_ftmamba.pipeline_ftmamba import FTMambaRecommendationPipeline
from tests.tiny_checkpoint import checkpoint_folder, tiny_checkpoint, tiny_items

__all__ = ["checkpoint_folder", "tiny_checkpoint", "tiny_items"]

RECORD = {"age": 31, "occupation": "doctor"}
JSON_TYPES = {
    "object": dict, "array": list, "string": str, "integer": int, "number": (int, float),
    "null": type(None),
}  # fmt: skip


def fits(value, schema):
    """Whether a value fits a schema, of the words that ours are written in."""
    if "anyOf" in schema:
        return any(fits(value, one) for one in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if isinstance(value, bool) or not any(isinstance(value, JSON_TYPES[one]) for one in types):
        return False
    if isinstance(value, dict):
        known = schema.get("properties", {})
        closed = schema.get("additionalProperties", True) is False
        return (
            set(schema.get("required", [])) <= set(value)
            and not (closed and set(value) - set(known))
            and all(fits(value[name], one) for name, one in known.items() if name in value)
        )
    if isinstance(value, list):
        return len(value) <= schema.get("maxItems", len(value)) and all(
            fits(one, schema["items"]) for one in value if "items" in schema
        )
    low, high = schema.get("minimum", value), schema.get("maximum", value)
    return not isinstance(value, int | float) or low <= value <= high


@pytest.fixture(scope="module")
def handler(checkpoint_folder):
    """A handler of the installed code; that of the folder runs in tests/travel."""

    def make(task, model, trust_remote_code):
        assert (task, trust_remote_code) == ("recommendation", True)
        loaded = load_checkpoint(model)
        return FTMambaRecommendationPipeline(
            loaded.model, loaded.extractor, loaded.catalogue, device="cpu"
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub_cards.handler, "pipeline", make)
        return EndpointHandler(str(checkpoint_folder))


def test_a_record_and_a_list_are_answered_as_the_pipeline_does(handler):
    pipe = handler._recommend
    assert handler({"inputs": RECORD}) == pipe(RECORD)
    parameters = {"top_k": 3, "exclude": ["i01", "unknown"]}
    request = {"inputs": [RECORD, {}], "parameters": parameters}
    assert handler(request) == pipe([RECORD, {}], **parameters)
    assert handler({"inputs": RECORD, "parameters": None}) == pipe(RECORD)
    assert handler({"inputs": []}) == []


GOOD = [
    {"inputs": RECORD},
    {"inputs": {}},
    {"inputs": [RECORD, {}], "parameters": {"top_k": 20, "exclude": ["i01"]}},
    {"inputs": [{"age": None, "gender": "never seen", "unknown": [1, {}]}, RECORD]},
]


@pytest.mark.parametrize("request_", GOOD)
def test_a_good_request_and_its_answer_fit_their_schemas(handler, request_):
    assert fits(request_, REQUEST_SCHEMA)
    answer = json.loads(json.dumps(handler(request_), allow_nan=False))
    assert isinstance(answer, list)
    assert fits(answer, ANSWER_SCHEMA)


BAD = [
    (None, "inputs", "a request must be an object"),
    ({}, "inputs", "a request must be an object"),
    ([RECORD], "inputs", "a request must be an object"),
    ({"inputs": None}, "inputs", "inputs must be an object or a list of objects"),
    ({"inputs": "age 31"}, "inputs", "inputs must be an object or a list of objects"),
    ({"inputs": RECORD, "top_k": 3}, "top_k", "a request has no field 'top_k'"),
    ({"inputs": RECORD, "parameters": [3]}, "parameters", "parameters must be an object"),
    ({"inputs": RECORD, "parameters": {"k": 3}}, "parameters.k", "there is no parameter 'k'"),
    ({"inputs": RECORD, "parameters": {"top_k": 0}}, "parameters.top_k", "from 1 to 20, got 0"),
    ({"inputs": RECORD, "parameters": {"top_k": 21}}, "parameters.top_k", "from 1 to 20, got 21"),
    ({"inputs": RECORD, "parameters": {"top_k": True}}, "parameters.top_k", "got True"),
    ({"inputs": RECORD, "parameters": {"top_k": None}}, "parameters.top_k", "got None"),
    ({"inputs": RECORD, "parameters": {"batch_size": 9}}, "parameters.batch_size", "no parameter"),
    ({"inputs": RECORD, "parameters": {"exclude": "i01"}}, "parameters.exclude", "must be a list"),
    (
        {"inputs": RECORD, "parameters": {"exclude": [[1]]}},
        "parameters.exclude",
        "key must be a single text, number, true/false or date, got [1]",
    ),
    ({"inputs": [{}] * (MOST_RECORDS + 1)}, "inputs", "1024 records at most, got 1025"),
    ({"inputs": [RECORD, 7]}, "inputs[1]", "must be a dict of column name to value, got 7"),
    ({"inputs": [RECORD, {"agee": 1}]}, "inputs[1]", "did you mean 'age'?"),
    ({"inputs": {"agee": 1}}, "inputs", "did you mean 'age'?"),
    ({"inputs": {"age": "old"}}, "inputs.age", "must be a finite number, got 'old'"),
    ({"inputs": [RECORD, {"age": {}}]}, "inputs[1].age", "must be a finite number, got {}"),
    ({"inputs": {"age": 10**400}}, "inputs.age", "must be a finite number"),
    ({"inputs": {"gender": ["F"]}}, "inputs.gender", "must be a single text"),
]


@pytest.mark.parametrize(("request_", "field", "message"), BAD)
def test_a_bad_request_is_told_what_is_wrong_and_where(handler, request_, field, message):
    answer = handler(request_)
    assert list(answer) == ["error"]
    assert (answer["error"]["type"], answer["error"]["field"]) == ("bad_request", field)
    assert message in answer["error"]["message"]
    assert fits(json.loads(json.dumps(answer)), ANSWER_SCHEMA)


def test_a_request_of_a_million_answers_is_refused(handler, monkeypatch):
    monkeypatch.setattr(hub_cards.handler, "MOST_ANSWERED", 12)
    request = {"inputs": [RECORD] * 4, "parameters": {"top_k": 3}}
    assert [len(one) for one in handler(request)] == [3] * 4
    request["inputs"].append(RECORD)
    error = handler(request)["error"]
    assert error["field"] == "parameters.top_k"
    assert error["message"].startswith("5 records times top_k 3 may be 12 at most")


def test_a_long_wrong_value_does_not_come_back_whole(handler):
    for inputs in ([{"x" * 5000: 1}], {"age": "x" * 5000}):
        assert len(json.dumps(handler({"inputs": inputs}))) < 700


@pytest.mark.parametrize(
    "error", [RuntimeError("token=hf_secret"), ValueError("hf_secret in /a/b")]
)
def test_a_failure_inside_shows_nothing_of_it(handler, monkeypatch, caplog, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(handler._recommend, "preprocess", fail)
    with caplog.at_level(logging.ERROR, logger="hub_cards.handler"):
        answer = handler({"inputs": RECORD})
    message = "the request could not be answered"
    assert answer == {"error": {"type": "internal_error", "message": message, "field": None}}
    assert fits(answer, ANSWER_SCHEMA)
    (logged,) = caplog.records
    assert logged.exc_info[1] is error


def test_requests_from_many_threads_get_their_own_answers(handler):
    requests = [
        {"inputs": {"age": 20 + number}, "parameters": {"top_k": 1 + number % 5}}
        if number % 4
        else {"inputs": [{"age": "old"}]}
        for number in range(64)
    ]
    expected = [handler(request) for request in requests]
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(handler, requests * 3))
    assert answers == expected * 3
    assert len({json.dumps(answer) for answer in expected}) > 40


def test_the_handler_needs_no_other_file_of_this_project():
    source = importlib.util.find_spec("hub_cards.handler").loader.get_source("hub_cards.handler")
    lines = [line for line in source.splitlines() if line.startswith(("import ", "from "))]
    assert [line.split()[1] for line in lines] == ["logging", "typing", "transformers"]
