"""Things that a recipe names: a split, a baseline."""

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, TypeVar

from modeling_ftmamba.columns import near

Made = TypeVar("Made")


def make_named(
    kind: str, makers: Mapping[str, Callable[..., Made]], name: str, options: Mapping[str, Any]
) -> Made:
    """Build the thing of a recipe's name and options.

    Args:
        kind: what it is, for messages.
        makers: by name, what builds it; the parameters are the options it may have.
        name: the recipe's.
        options: the recipe's.

    Raises:
        ValueError: an unknown name or option, or a value out of its range.
    """
    if name not in makers:
        raise ValueError(
            f"{kind} must be one of {', '.join(makers)}, got {name!r}{near(name, makers)}"
        )
    known = list(signature(makers[name]).parameters)
    for option in options:
        if option not in known:
            allowed = f"it may have: {', '.join(known)}" if known else "it has no options"
            raise ValueError(
                f"{kind} {name!r} has no option {option!r}{near(option, known)}; {allowed}"
            )
    return makers[name](**options)
