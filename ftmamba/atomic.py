"""Files and folders that appear whole or not at all."""

import errno
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatch
from pathlib import Path

from safetensors import SafetensorError

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

_NO_ROOM = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_NOT_MOVABLE = frozenset((errno.EBUSY, errno.EXDEV))


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` to write to; it becomes `path` when the block ends well.

    Its mode is that of the umask, also where safetensors makes it one's own alone.

    Raises:
        OSError: the disk is full; what was at `path` is untouched.
    """
    temporary = path.with_name(f".{path.name}.new")
    with _named_errors(path):
        try:
            temporary.touch()
            mode = temporary.stat().st_mode
            yield temporary
            temporary.chmod(mode)
            _flush(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path, *, owned: Sequence[str]) -> Iterator[Path]:
    """Yield an empty folder beside `folder` to fill; it replaces it when the block ends well.

    Two renames do the swap. Entries of the earlier folder that match none of the `owned` patterns
    (training state, logs) move into the new one. Whatever moment the process is killed at,
    a whole folder is left, the earlier or the new one: `whole_folder_at` finds it, and the next
    save finishes the swap. Modes of files are those of the umask.

    Raises:
        OSError: the disk is full or the folder cannot be moved; the earlier one is untouched.
    """
    finish_swap(folder, owned=owned)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    with _named_errors(folder):
        try:
            new.mkdir()
            yield new
            for path in sorted(new.rglob("*")):
                if path.is_file():
                    path.chmod(new.stat().st_mode & 0o666)
                    _flush(path)
            if folder.exists():
                folder.rename(_previous(folder))
            new.rename(folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
            finish_swap(folder, owned=owned)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which need not exist; it ends with the process at the latest.

    Raises:
        ValueError: another process holds it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f".{folder.name}.lock")
    with ExitStack() as stack:
        while True:
            file = stack.enter_context(path.open("a"))
            if fcntl is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise ValueError(
                        f"another run is writing to {str(folder)!r}; wait for its end, or give "
                        "another output_dir"
                    ) from None
            # The one that held it before may have removed the file meanwhile.
            if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
                break
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def whole_folder_at(folder: Path) -> Path:
    """Return where a whole folder can be read: beside `folder` if a swap was cut short."""
    previous = _previous(folder)
    return previous if previous.is_dir() and not folder.exists() else folder


def finish_swap(folder: Path, *, owned: Sequence[str]) -> None:
    """Finish or undo a swap that was cut short; for the one process that writes the folder."""
    previous = _previous(folder)
    if not previous.is_dir():
        return
    if not folder.exists():
        previous.rename(folder)
        return
    for entry in sorted(previous.iterdir()):
        kept = not any(fnmatch(entry.name, pattern) for pattern in owned)
        if kept and not (folder / entry.name).exists():
            entry.rename(folder / entry.name)
    shutil.rmtree(previous)


def _previous(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.previous")


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def _named_errors(target: Path) -> Iterator[None]:
    """Name what failed, where a person can mend the cause."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        if number is None and (match := re.search(r"os error (\d+)", str(error))):
            number = int(match[1])
        problem = f"{str(target)!r} cannot be renamed (is it a mount point?); give a folder inside"
        if number in _NO_ROOM:
            problem = f"no room left on the disk while writing {str(target)!r}; free some space"
        elif number not in _NOT_MOVABLE:
            raise
        raise OSError(number, f"{problem}; nothing there was changed") from error
