"""`python -m ftmamba`, and the command `ftmamba`."""

import json
import os
import signal
import sys
import threading
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ftmamba.commands import COMMANDS
from ftmamba.terminal import printable_streams

USER_ERRORS = (ValueError, OSError, ImportError)
"""What bad input raises: the message is for the person, the stack is not."""

BAD_INPUT, STOPPED = 2, 130


def main(argv: Sequence[str] | None = None, *, program: str = "ftmamba") -> int:
    """Run one command and return the exit code: 0, 2 after bad input, 130 or 143 after a signal."""
    with printable_streams(), _sigterm_like_ctrl_c():
        return _main(argv, program)


class _TerminatedError(KeyboardInterrupt):
    exit_code = 128 + signal.SIGTERM


@contextmanager
def _sigterm_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM raise where the block is, so that what is half done there is undone."""

    def stop(_number: int, _frame: object) -> None:
        raise _TerminatedError("stopped by SIGTERM")

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _main(argv: Sequence[str] | None, program: str) -> int:
    parser = _parser(program)
    arguments, rest = parser.parse_known_args(argv)
    arguments.rest, arguments.program = rest, program
    if rest and not COMMANDS[arguments.command].flags_of_recipe:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        COMMANDS[arguments.command].run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (`| head`) has closed the pipe: print nothing more, also not at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt as stop:
        print(f"{parser.prog}: {str(stop) or 'stopped by Ctrl-C'}", file=sys.stderr)
        return getattr(stop, "exit_code", STOPPED)
    except USER_ERRORS as error:
        if arguments.traceback:
            raise
        from ftmamba.hub import hide_tokens, known_tokens

        message = hide_tokens(" ".join(str(error).split()), known_tokens()) or type(error).__name__
        line = f"{parser.prog}: error: {message}"
        if report := os.environ.get("TORCHELASTIC_ERROR_FILE"):
            # What the launcher of several processes shows at the end of its own report.
            Path(report).write_text(json.dumps({"message": line, "timestamp": int(time.time())}))
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(line, file=sys.stderr, flush=True)
        return BAD_INPUT
    except RuntimeError as error:
        if "closed by peer" not in str(error) or os.environ.get("LOCAL_RANK", "0") == "0":
            raise
        return BAD_INPUT  # the other process has said why it ended
    return 0


def _parser(program: str) -> ArgumentParser:
    parser = ArgumentParser(program, description="Two-tower recommenders from tables.")
    parser.add_argument(
        "--traceback", action="store_true", help="show where in the program an error arose"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, command in COMMANDS.items():
        own_help = not command.flags_of_recipe
        command.add_arguments(
            commands.add_parser(
                name, help=command.summary, description=command.summary, add_help=own_help
            )
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
