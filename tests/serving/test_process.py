"""`ftmamba serve` as a process: several workers share Redis, and a stop answers what has begun."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from ftmamba.__main__ import main
from ftmamba.commands.serve import app
from tests.streaming.redis_server import free_port

EVENT = {"user_key": "new", "item_key": "i03", "event_id": "e1"}


class Client:
    """Sends one request a connection, as several clients would."""

    def __init__(self, port, key=""):
        self.port, self.headers = port, {"Authorization": f"Bearer {key}"}

    def __call__(self, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            data = None if body is None else json.dumps(body)
            headers = {"Content-Type": "application/json", **self.headers}
            connection.request("GET" if body is None else "POST", path, data, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()


@contextmanager
def served(folder, *flags, key=""):
    port = free_port()
    command = [sys.executable, "-m", "ftmamba", "serve", str(folder), "--port", str(port), *flags]
    environment = {**os.environ, "FTMAMBA_API_KEY": key, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    client = Client(port, key)
    try:
        deadline = time.monotonic() + 180
        while True:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            try:
                if client("/readyz")[0] == 200:
                    break
            except OSError:
                time.sleep(0.1)
        yield client, process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(30)
        process.stderr.close()


@pytest.mark.slow
def test_workers_share_states_and_metrics_and_stop_after_answering(folder, redis_server):
    redis = pytest.importorskip("redis")
    flags = ("--workers", "2", "--store", redis_server.url)
    with served(folder, *flags, key="secret") as (client, process):
        assert Client(client.port)("/recommend", {"user_key": "u1"})[0] == 401
        for number in range(12):
            event = {**EVENT, "user_key": f"new{number}"}
            status, text = client("/events", event)
            assert (status, json.loads(text)["observed"]) == (200, 1)
            status, text = client("/recommend", {"user_key": f"new{number}"})
            assert status == 200
            assert "i03" not in {one["item_key"] for one in json.loads(text)["items"]}
        lines = client("/metrics")[1].splitlines()
        assert 'ftmamba_events_total{outcome="observed"} 12.0' in lines
        answers = []

        def send():
            answers.append(client("/recommend", {"user_key": "new1"})[0])

        with redis.Redis.from_url(redis_server.url) as commands:
            commands.client_pause(2500)
        sender = threading.Thread(target=send)
        sender.start()
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        sender.join()
        process.wait(30)
        assert answers == [200]
        assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--workers", "2"], "--workers 2 would each keep other states in memory"),
        (["--workers", "0"], "--workers must be 1 or more"),
        (["--most-k", "0"], "most_k must be more than 0"),
        (["--threads", "-1"], "threads must be more than 0"),
        (["--store", "nowhere"], "a store must be memory:"),
    ],
)
def test_a_wrong_flag_is_said_in_one_line(folder, capsys, monkeypatch, flags, problem):
    monkeypatch.setattr("uvicorn.run", lambda *_, **__: app())
    monkeypatch.setenv("FTMAMBA_SERVE", "")  # To be restored after the test.
    assert main(["serve", str(folder), *flags]) == 2
    error = capsys.readouterr().err
    assert problem in error
    assert error.count("\n") == 1
