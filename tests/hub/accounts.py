"""Who may do what on a loopback Hub."""

from dataclasses import dataclass

USER = "tester"
TOKEN = "hf_" + "WriteLoopback" * 2 + "12345678"
READ_TOKEN = "hf_" + "ReadsLoopback" * 2 + "12345678"
STRANGER = "stranger"
STRANGER_TOKEN = "hf_" + "OtherLoopback" * 2 + "12345678"
"""Tokens look like the Hub's own, so that what hides those hides these."""


@dataclass(frozen=True)
class Account:
    """A user, by one of the user's tokens.

    Attributes:
        name: also the namespace that the user owns.
        can_write: whether the token may do more than read.
    """

    name: str
    can_write: bool = True

    def owns(self, repo_id: str) -> bool:
        return repo_id.split("/")[0] == self.name


def known_tokens() -> dict[str, Account]:
    """Return the accounts that a new Hub knows, by token."""
    return {
        TOKEN: Account(USER),
        READ_TOKEN: Account(USER, can_write=False),
        STRANGER_TOKEN: Account(STRANGER),
    }
