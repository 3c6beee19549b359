"""Packages that only the baselines need."""

from importlib import import_module
from types import ModuleType


def require(package: str, baseline: str) -> ModuleType:
    """Import a package of the extra `baselines`.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"the baseline {baseline!r} needs the package {package.split('.')[0]!r}, which is not "
            "installed; run: pip install 'ftmamba[baselines]'"
        ) from error
