"""Data sets travel through the loopback Hub with the real `datasets`, in a process of their own."""

from pathlib import Path

from tests.hub.processes import run_python

SCRIPT = Path(__file__).with_name("dataset_process.py")


def test_a_data_set_is_pushed_and_loaded(own_hub, tmp_path):
    report = run_python(SCRIPT, "tester/people", HF_HOME=str(tmp_path), **own_hub.environment())
    assert report["rows"] == report["expected"]
    repository = own_hub.repositories["datasets/tester/people"]
    assert repository.private
    assert repository.head == report["commit"]
    files = own_hub.files("datasets/tester/people")
    assert [path for path in files if path.endswith(".parquet")] == [
        "data/train-00000-of-00001.parquet"
    ]
    assert b"dataset_info" in files["README.md"]
