"""Things that a recipe chooses by name and options, such as a split or a baseline."""

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, TypeVar

from modeling_ftmamba.configuration_ftmamba import near

Made = TypeVar("Made")


def make_named(
    kind: str, makers: Mapping[str, Callable[..., Made]], name: str, options: Mapping[str, Any]
) -> Made:
    """Build the thing of a recipe's name and options.

    Args:
        kind: of thing, for error messages.
        makers: name -> the function that builds it; its parameters are the options allowed.
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
