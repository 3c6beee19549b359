"""Two processes train, one pushes, and the Hub may fail on the way."""

import sys
from pathlib import Path

from ftmamba.checkpoint import load_checkpoint
from tests.hub.accounts import TOKEN
from tests.hub.processes import ROOT, run_process

LAUNCH_FILE = ROOT / "configuration" / "accelerate" / "two-cpu-processes.yaml"
REPO = "tester/films"


def test_two_ranks_make_one_push_of_each_state_through_faults(own_hub, argv, tmp_path):
    own_hub.faults.add(r"/repos/create", status=503)
    own_hub.faults.add(r"/_upload/", cut_upload_after=100)
    own_hub.faults.add(r"/preupload/", status=429, retry_after=0)
    own_hub.faults.add(r"/commit/", status=500)
    own_hub.faults.add(r"/commit/", lose_answer=True)
    launch = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(LAUNCH_FILE),
        "--main_process_port", "0", str(Path(__file__).with_name("two_ranks.py")), *argv,
        "--checkpointing_steps", "epoch", "--hub_strategy", "every_save", "--hub_patience", "100",
    ]  # fmt: skip
    environment = {**own_hub.environment(), "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = run_process(launch, timeout=240, **environment)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "NOT ON THE HUB" not in done.stderr
    assert "next try in" in done.stderr
    sent = [one.headers.get("authorization") for one in own_hub.requests if one.origin == "hub"]
    assert set(sent) == {f"Bearer {TOKEN}"}
    titles = [one.title for one in own_hub.repositories[REPO].history("main")]
    assert len(titles) == len(set(titles)) >= 3
    assert titles[0].startswith("Pin")
    assert titles[1].startswith("Trained for")
    output = tmp_path / "runs" / "films"
    assert own_hub.files(REPO)["model.safetensors"] == (output / "model.safetensors").read_bytes()
    arrived = tmp_path / "arrived"
    for path, content in own_hub.files(REPO).items():
        (arrived / path).parent.mkdir(exist_ok=True)
        (arrived / path).write_bytes(content)
    assert load_checkpoint(arrived).catalogue.keys == load_checkpoint(output).catalogue.keys
    assert TOKEN not in done.stdout + done.stderr
