"""Every answer equals that of the recommender, or of the observer once events have come in."""

import json
import threading
import time
from dataclasses import asdict, replace

import pytest
import torch

from ftmamba.checkpoint import load_to_recommend, save_checkpoint
from ftmamba.recommender import Recommender
from ftmamba.streaming import CheckpointObserver, parse_event
from ftmamba.streaming.stores import SQLiteStore
from ftmamba.table_embedding import embed_catalogue
from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel
from tests.streaming.history_checkpoint import make_checkpoint

EVENT = {"user_key": "new", "item_key": "i03", "event_id": "e1", "time": 1000, "weight": 4}


def text_of_error(answer, status):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["status"] == status
    assert "Traceback" not in answer.text
    return error["message"]


def observed(checkpoint, *events):
    """Return the observer, and the state of the user of some events."""
    observer = CheckpointObserver(checkpoint)
    parsed = [parse_event(json.dumps(one)) for one in events]
    state = observer.start(parsed[:1])
    for one in parsed:
        state = observer.observe(state, [[one]])
    return observer, state


@pytest.mark.parametrize(
    ("request_", "same"),
    [
        ({"user_key": "u5"}, {"user_key": "u5"}),
        ({"user_key": "u1", "k": 3, "exclude": ["i04", 7]},
         {"user_key": "u1", "k": 3, "exclude": ["i04"]}),
        ({"user_key": "u5", "exclude_seen": False}, {"user_key": "u5", "exclude_seen": False}),
        ({"record": {"age": 31}}, {"record": {"age": 31}}),
        ({"history": ["i02", {"item": "i09", "price": 3.5}]},
         {"record": {"films": ["i02", {"item": "i09", "price": 3.5}]}}),
        ({"record": {"gender": "F"}, "history": ["i02"]},
         {"record": {"gender": "F", "films": ["i02"]}}),
    ],
)  # fmt: skip
def test_a_recommendation_is_the_recommenders(client, checkpoint, request_, same):
    answer = client.post("/recommend", json=request_)
    expected = [asdict(one) for one in Recommender(checkpoint).recommend(**same)]
    assert answer.json()["items"] == expected
    assert answer.json()["model"] == checkpoint.catalogue.fingerprint


def test_similar_items_and_explanations_are_the_recommenders(client, checkpoint):
    recommender = Recommender(checkpoint)
    answer = client.get("/similar", params={"item_key": "i03", "k": 4})
    assert answer.json()["items"] == [asdict(one) for one in recommender.similar_items("i03", 4)]
    answer = client.post("/explain", json={"user_key": "u5", "item_key": "i03"})
    assert answer.json() == recommender.explain("u5", "i03").to_dict()
    record = {"age": 30}
    answer = client.post("/explain", json={"record": record, "history": ["i01"], "item_key": "i03"})
    assert answer.json() == recommender.explain({**record, "films": ["i01"]}, "i03").to_dict()


@pytest.mark.parametrize("user", ["new", "u5"])
def test_the_next_recommendation_knows_the_events(client, checkpoint, user):
    first, second = {**EVENT, "user_key": user}, {"user_key": user, "item_key": "i07", "time": 2000}
    told = client.post("/events", json=first).json()
    assert told == {"observed": 1, "duplicates": 0, "late": 0, "refused": []}
    assert client.post("/events", json=[second, first]).json()["duplicates"] == 1
    observer, state = observed(checkpoint, first, second)
    answer = client.post("/recommend", json={"user_key": user, "k": 5, "exclude": ["i08"]})
    expected = observer.ranked([user], state, 5, exclude=["i08"])[0]
    keys = checkpoint.catalogue.keys
    assert [(one["item_key"], one["score"], one["title"]) for one in answer.json()["items"]] == [
        (keys[row], score, f"Film {keys[row]}") for row, score in expected
    ]
    assert not {"i03", "i07", "i08"} & {one["item_key"] for one in answer.json()["items"]}
    message = text_of_error(
        client.post("/explain", json={"user_key": user, "item_key": "i03"}), 400
    )
    assert "events have changed this user" in message


def test_late_events_are_counted_and_change_nothing(client):
    client.post("/events", json=EVENT)
    before = client.post("/recommend", json={"user_key": "new"}).json()
    late = {**EVENT, "event_id": "e0", "time": 10, "item_key": "i05"}
    answer = client.post("/events", json=late).json()
    assert (answer["observed"], answer["late"]) == (0, 1)
    assert "older than the user's newest (1000)" in answer["refused"][0]["reason"]
    assert client.post("/recommend", json={"user_key": "new"}).json() == before


def test_events_that_cannot_be_observed_are_named_and_the_others_count(client):
    bad = {"user_key": "new", "item_key": "i99"}
    wrong = {"user_key": "u1"}
    answer = client.post("/events", json=[bad, EVENT, wrong])
    assert answer.json()["observed"] == 1
    malformed, refused = answer.json()["refused"]
    assert "event 2 (the first is 0): an event's item_key" in malformed["reason"]
    assert json.loads(malformed["message"]) == wrong
    assert (refused["kind"], json.loads(refused["message"])) == ("unknown_items", bad)
    assert "'i99' is not among the 20 of the catalogue" in refused["reason"]


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/recommend", {"user_key": "u55"}, 404, "no user 'u55' among the 6 known users; did you"),
        ("/recommend", {}, 400, "give either user_key, or record and history, of a user; got none"),
        ("/recommend", {"user_key": "u1", "record": {}}, 400, "got both"),
        ("/recommend", {"user_key": ""}, 400, "a user's key must be a text of 1 to 1024 bytes"),
        ("/recommend", {"user_key": "u1", "k": 21}, 400, "k must be from 1 to 20, got 21"),
        ("/recommend", {"user_key": "u1", "k": 0}, 400, "k: Input should be greater than"),
        ("/recommend", {"user_key": "u1", "top_k": 1}, 400, "top_k: Extra inputs"),
        ("/recommend", {"record": {"age": "old"}}, 400, "age"),
        ("/recommend", {"record": {"aeg": 3}}, 400, "aeg"),
        ("/recommend", {"history": [{"itm": "i01"}]}, 400, "an event has no 'itm'"),
        ("/recommend", {"record": {"films": ["i01"]}, "history": []}, 400, "not both"),
        ("/events", {**EVENT, "item_key": "i99"}, 404, "'i99' is not among the 20"),
        ("/events", [{"user_key": "u1"}], 400, "an event's item_key must be"),
        ("/events", {**EVENT, "tmie": 3}, 400, "it has the field 'tmie'; did you mean 'time'"),
        ("/events", {**EVENT, "time": 1e12}, 400, "divide milliseconds by 1000"),
        ("/events", {**EVENT, "context": {"pirce": 3}}, 400, "got: pirce; did you mean 'price'"),
        ("/events", [], 400, "1 to 256 events"),
        ("/events", [EVENT] * 257, 400, "1 to 256 events"),
        ("/explain", {"user_key": "u1", "item_key": "i9"}, 404, "no item 'i9' among the 20"),
        ("/nothing", {}, 404, "Not Found"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_answered_in_words(client, path, body, status, message):
    assert message in text_of_error(client.post(path, json=body), status)


def test_a_wrong_item_or_body_is_answered_in_words(client):
    assert "'i9'" in text_of_error(client.get("/similar", params={"item_key": "i9"}), 404)
    for body in (b"{", b"[" * 9000, b'{"k": NaN}', b"\xff", b'{"user_key": "\\ud800"}'):
        headers = {"content-type": "application/json"}
        text_of_error(client.post("/recommend", content=body, headers=headers), 400)


def test_a_request_without_the_key_is_refused(serve):
    client = serve(api_key="secret")
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
    for headers in ({}, {"authorization": "Bearer secre"}):
        answer = client.post("/recommend", json={"user_key": "u1"}, headers=headers)
        assert "Authorization: Bearer KEY" in text_of_error(answer, 401)
    headers = {"authorization": "Bearer secret"}
    assert client.post("/recommend", json={"user_key": "u1"}, headers=headers).status_code == 200


def test_a_body_that_is_too_large_is_refused_however_it_is_sent(serve):
    client = serve(most_body_bytes=1000)
    body = json.dumps({"user_key": "u" * 1000}).encode()
    headers = {"content-type": "application/json"}
    for content in (body, iter([body[:600], body[600:]])):
        answer = client.post("/recommend", content=content, headers=headers)
        assert "the body may have 1000 bytes" in text_of_error(answer, 413)


class SlowStore(SQLiteStore):
    """Waits until it may answer."""

    def __init__(self):
        super().__init__()
        self.may_answer, self.is_asked = threading.Event(), threading.Event()
        self.may_answer.set()

    def get(self, user_keys):
        self.is_asked.set()
        assert self.may_answer.wait(10)
        return super().get(user_keys)


def test_too_many_requests_at_once_are_refused(serve):
    store = SlowStore()
    client = serve(store=store, most_requests=1)
    store.may_answer.clear()
    answers = []
    ask = {"user_key": "u1"}
    first = threading.Thread(
        target=lambda: answers.append(client.post("/recommend", json=ask).status_code)
    )
    first.start()
    assert store.is_asked.wait(10)
    refused = client.post("/recommend", json=ask)
    assert "1 requests are being answered already" in text_of_error(refused, 429)
    assert refused.headers["retry-after"] == "1"
    store.may_answer.set()
    first.join()
    assert answers == [200]
    assert client.post("/recommend", json=ask).status_code == 200


def test_a_fault_of_the_server_shows_no_internals(client, monkeypatch, caplog):
    def fail(*_arguments):
        raise RuntimeError("secret internals")

    monkeypatch.setattr(client.service.store, "get", fail)
    answer = client.post("/recommend", json={"user_key": "u1"})
    assert "secret" not in text_of_error(answer, 500)
    assert "secret internals" in caplog.text


def test_the_metrics_count_what_happened(client, checkpoint):
    client.post("/events", json=EVENT)
    client.post("/events", json=[EVENT, {**EVENT, "time": 3, "event_id": "e7"}])
    client.post("/recommend", json={"user_key": "u9"})
    text = client.get("/metrics").text
    observer, state = observed(checkpoint, EVENT)
    for line in (
        'ftmamba_events_total{outcome="observed"} 1.0',
        'ftmamba_events_total{outcome="duplicates"} 1.0',
        'ftmamba_events_total{outcome="late"} 1.0',
        'ftmamba_errors_total{path="/recommend",status="404"} 1.0',
        'ftmamba_request_seconds_count{path="/events"} 2.0',
        f"ftmamba_state_bytes {float(len(observer.pack(state)[0]))}",
    ):
        assert line in text.splitlines()


def other_weights(checkpoint, folder):
    """Save a checkpoint with other weights and two items more, and return it as it is loaded."""
    model = FTMambaTwoTowerModel(checkpoint.model.config).eval()
    items = {
        "item_id": [*checkpoint.catalogue.keys, "i98", "i99"],
        "year": [1980.0 + row for row in range(22)],
    }
    catalogue = embed_catalogue(
        model, checkpoint.extractor(items=items), keys=items["item_id"], titles=()
    )
    save_checkpoint(folder, replace(checkpoint, model=model, catalogue=catalogue, users=None))
    return load_to_recommend(folder)


def test_a_checkpoint_is_replaced_without_dropping_a_request(client, checkpoint, folder, tmp_path):
    client.post("/events", json=EVENT)
    new = other_weights(checkpoint, tmp_path / "new")
    old, replaced = checkpoint.catalogue.fingerprint, new.catalogue.fingerprint
    ask = {"record": {"age": 31}, "k": 20}
    by_model = {
        one.catalogue.fingerprint: [asdict(x) for x in Recommender(one).recommend(**ask)]
        for one in (checkpoint, new)
    }
    answers, stop = [], threading.Event()

    def send():
        while not stop.is_set():
            answers.append(client.post("/recommend", json=ask))

    senders = [threading.Thread(target=send) for _ in range(3)]
    for sender in senders:
        sender.start()
    folder.rename(tmp_path / "old")
    (tmp_path / "new").rename(folder)
    deadline = time.monotonic() + 20
    while client.get("/readyz").json()["model"] != replaced and time.monotonic() < deadline:
        time.sleep(0.01)
    client.post("/recommend", json=ask)
    stop.set()
    for sender in senders:
        sender.join()
    assert {one.status_code for one in answers} == {200}
    assert all(one.json()["items"] == by_model[one.json()["model"]] for one in answers)
    assert {one.json()["model"] for one in answers} == {old, replaced}
    # The old state cannot be read by the new weights: the user starts again with the next event.
    text_of_error(client.post("/recommend", json={"user_key": "new"}), 404)
    assert client.post("/events", json={**EVENT, "item_key": "i99"}).json()["observed"] == 1
    observer, state = observed(new, {**EVENT, "item_key": "i99"})
    answer = client.post("/recommend", json={"user_key": "new", "k": 3}).json()["items"]
    assert [one["item_key"] for one in answer] == observer.recommend(["new"], state, 3)[0]


def test_a_damaged_replacement_is_refused_and_the_old_checkpoint_stays(client, checkpoint, folder):
    (folder / "model.safetensors").write_bytes(b"half a file")
    deadline = time.monotonic() + 20
    while not client.get("/readyz").json()["problem"] and time.monotonic() < deadline:
        time.sleep(0.01)
    answer = client.get("/readyz").json()
    assert answer["model"] == checkpoint.catalogue.fingerprint
    assert "model.safetensors" in answer["problem"]
    assert client.post("/recommend", json={"user_key": "u1"}).status_code == 200
    assert 'ftmamba_loads_total{outcome="refused"}' in client.get("/metrics").text


def test_a_model_without_a_history_recommends_and_refuses_events(serve, tmp_path):
    plain = make_checkpoint([{"name": "age", "kind": "numeric"}])
    save_checkpoint(tmp_path / "plain", replace(plain, users=None))
    client = serve(tmp_path / "plain")
    assert client.post("/recommend", json={"record": {"age": 3}}).status_code == 200
    assert "no column of kind 'history'" in text_of_error(client.post("/events", json=EVENT), 400)
    asked = client.post("/recommend", json={"history": ["i01"]})
    assert "no column of kind 'history'" in text_of_error(asked, 400)


def test_events_wait_for_redis_and_are_never_lost_silently(serve, own_redis_server):
    from ftmamba.commands.stream import open_store

    pytest.importorskip("redis")
    client = serve(store=open_store(own_redis_server.url, retries=0))
    assert client.post("/events", json=EVENT).json()["observed"] == 1
    before = client.post("/recommend", json={"user_key": "new"}).json()
    own_redis_server.stop()
    assert "the users' states cannot be reached" in text_of_error(client.get("/readyz"), 503)
    second = {**EVENT, "event_id": "e2", "item_key": "i04"}
    answer = client.post("/events", json=second)
    assert "send the request again" in text_of_error(answer, 503)
    assert answer.headers["retry-after"] == "1"
    text_of_error(client.post("/recommend", json={"user_key": "new"}), 503)
    assert client.post("/recommend", json={"record": {"age": 3}}).status_code == 200
    own_redis_server.start()
    assert client.get("/readyz").status_code == 200
    assert client.post("/recommend", json={"user_key": "new"}).json() == before
    assert client.post("/events", json=[EVENT, second]).json() == {
        "observed": 1, "duplicates": 1, "late": 0, "refused": []
    }  # fmt: skip


def test_the_examples_of_the_openapi_page_are_answered(client):
    described = client.get("/openapi.json").json()
    n_examples = 0
    for path, methods in described["paths"].items():
        for operation in methods.values():
            content = operation.get("requestBody", {}).get("content", {})
            if "application/json" in content:
                body = content["application/json"]["example"]
                assert client.post(path, json=body).status_code == 200, (path, body)
                n_examples += 1
            assert "422" not in operation["responses"]
    assert n_examples == 3
    assert torch.get_num_threads() == 1
