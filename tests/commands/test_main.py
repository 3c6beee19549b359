import json
import signal
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import pytest

from ftmamba import __main__ as program
from ftmamba.commands import COMMANDS, Command
from ftmamba.training.loop import TrainingStoppedError


def failing(error):
    def run(_):
        raise error

    return Command("fails", ArgumentParser.format_help, run)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "error",
    [ValueError("two\n  lines"), FileNotFoundError("two\n lines"), ImportError("two lines")],
)
def test_bad_input_is_one_line_and_exit_code_2(error, monkeypatch, capsys):
    monkeypatch.setitem(COMMANDS, "fail", failing(error))
    assert program.main(["fail"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "ftmamba: error: two lines\n"


def test_bad_input_to_several_processes_is_said_once_and_in_the_launchers_report(
    monkeypatch, capsys, tmp_path
):
    monkeypatch.setitem(COMMANDS, "fail", failing(ValueError("two\n lines")))
    for rank, printed in (("0", "ftmamba: error: two lines\n"), ("1", "")):
        monkeypatch.setenv("LOCAL_RANK", rank)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / rank))
        assert program.main(["fail"]) == 2
        assert capsys.readouterr().err == printed
        report = json.loads((tmp_path / rank).read_text())
        assert report["message"] == "ftmamba: error: two lines"
    lost = RuntimeError("[gloo] Connection closed by peer")
    monkeypatch.setitem(COMMANDS, "fail", failing(lost))
    assert program.main(["fail"]) == 2
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(RuntimeError, match="closed by peer"):
        program.main(["fail"])


@pytest.mark.parametrize(
    ("stop", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
        (TrainingStoppedError(Path("run/checkpoints"), 7, signal.SIGINT), 130, "stopped by Ctrl-C"),
        (TrainingStoppedError(Path("run/checkpoints"), 7, signal.SIGTERM), 143, "stopped by SIGT"),
    ],
)
def test_a_signal_is_one_line_and_the_exit_code_of_shells(stop, code, line, monkeypatch, capsys):
    monkeypatch.setitem(COMMANDS, "fail", failing(stop))
    assert program.main(["fail"]) == code
    error = capsys.readouterr().err
    assert error.startswith(f"ftmamba: {line}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "flags"), [(KeyError("bug"), []), (ValueError("bad"), ["--traceback"])]
)
def test_a_bug_keeps_its_stack_and_bad_input_shows_it_on_request(error, flags, monkeypatch):
    monkeypatch.setitem(COMMANDS, "fail", failing(error))
    with pytest.raises(type(error)):
        program.main([*flags, "fail"])


@pytest.mark.parametrize("arguments", [[], ["recomend"], ["recommend", "run"]])
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        program.main(arguments)
    assert caught.value.code == 2
    assert "usage: ftmamba" in capsys.readouterr().err


def test_help_lists_every_command_and_needs_no_torch(tmp_path):
    """A stub in place of torch fails at import: `--help` has to answer at once."""
    (tmp_path / "torch.py").write_text("raise RuntimeError('imported')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from ftmamba.__main__ import main; "
    done = subprocess.run(
        [sys.executable, "-c", code + "main(['--help'])"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(COMMANDS) >= 3
    assert {line.split()[0] for line in done.stdout.splitlines() if line.strip()} >= set(COMMANDS)


TALKING = """
import sys
from ftmamba.__main__ import main
from ftmamba.commands import COMMANDS, Command
def run(arguments):
    sys.stdin.read()
    print("word " * 100_000)
COMMANDS["talk"] = Command("talks", lambda parser: None, run)
sys.exit(main(["talk"]))
"""


def test_a_reader_that_leaves_early_is_no_error():
    with subprocess.Popen(
        [sys.executable, "-c", TALKING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.close()
        error = process.stderr.read()
    assert (process.returncode, error) == (0, b"")
