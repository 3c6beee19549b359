"""What the routes of a loopback Hub share."""

import threading
from dataclasses import dataclass, field

from .accounts import Account, known_tokens
from .repositories import Store


@dataclass
class HubState:
    """A Hub without its sockets.

    Attributes:
        endpoint: its address.
        storage: the address where large files lie: another host, where no token belongs.
        store: the repositories.
        tokens: the accounts, by token.
        page_size: entries a page of a tree; 0: as many as the Hub gives.
        lock: held while a request is worked on.
    """

    endpoint: str = ""
    storage: str = ""
    store: Store = field(default_factory=Store)
    tokens: dict[str, Account] = field(default_factory=known_tokens)
    page_size: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)
