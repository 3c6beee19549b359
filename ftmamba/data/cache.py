"""Where downloaded and tokenised data are kept, and how a folder is put there whole."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder of `FTMAMBA_CACHE`, else `~/.cache/ftmamba`; it may not exist yet."""
    chosen = os.environ.get("FTMAMBA_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "ftmamba"


def place_folder(target: Path, fill: Callable[[Path], None]) -> Path:
    """Make a folder whole or not at all: fill a temporary sibling, then rename it.

    If another process placed the same folder meanwhile, theirs is kept.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        fill(temporary)
        temporary.chmod(0o755)
        try:
            temporary.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target
