"""Files and folders that appear whole or not at all."""

import errno
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from safetensors import SafetensorError

_NO_ROOM = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_NOT_MOVABLE = frozenset((errno.EBUSY, errno.EXDEV))


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` to write to; it becomes `path` when the block ends well.

    Raises:
        OSError: the disk is full; what was at `path` is untouched.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise _named(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path, *, owned: Sequence[str]) -> Iterator[Path]:
    """Yield an empty folder beside `folder` to fill; it takes its place when the block ends well.

    Two renames do the swap. Entries of the earlier folder that match none of the `owned` patterns
    (training state, logs) move into the new one. Whatever moment the process is killed at,
    a whole folder is left, the earlier or the new one: `whole_folder_at` finds it, and the next
    save puts it in its place.

    Raises:
        OSError: the disk is full or the folder cannot be moved; the earlier one is untouched.
    """
    finish_swap(folder, owned=owned)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new, previous = _new(folder), _previous(folder)
    _remove(new)
    try:
        new.mkdir()
        yield new
        _flush_tree(new)
        if folder.exists():
            folder.rename(previous)
        new.rename(folder)
    except (OSError, SafetensorError) as error:
        raise _named(error, folder) from error
    finally:
        _remove(new)
        finish_swap(folder, owned=owned)


def whole_folder_at(folder: Path) -> Path:
    """Return where a whole folder is to be read: beside its place if a swap was cut short."""
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
    _remove(previous)


def _new(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.new")


def _previous(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.previous")


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _flush_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            _flush(path)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _named(error: OSError | SafetensorError, target: Path) -> OSError | SafetensorError:
    """Say in words what failed, where the cause is one that a person can cure."""
    number = error.errno if isinstance(error, OSError) else _os_error_number(error)
    if number in _NO_ROOM:
        return OSError(
            number,
            f"no room left on the disk while writing {str(target)!r}; nothing there was changed: "
            "free some space or write to another folder",
        )
    if number in _NOT_MOVABLE:
        return OSError(
            number,
            f"{str(target)!r} cannot be renamed (is it a mount point?), so it cannot be replaced "
            "whole; nothing there was changed: give a folder inside it",
        )
    return error


def _os_error_number(error: SafetensorError) -> int | None:
    match = re.search(r"os error (\d+)", str(error))
    return int(match[1]) if match else None
