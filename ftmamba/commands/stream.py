"""`python -m ftmamba stream`: keep users fresh while events come in."""

import json
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ftmamba.checkpoint import Checkpoint
    from ftmamba.streaming import Counts, Rules, Source, StateStore

SECONDS_BETWEEN_LINES = 5.0


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("checkpoint", help="folder of a checkpoint, or a Hub id such as name/repo")
    parser.add_argument(
        "--source",
        required=True,
        metavar="PLACE",
        help='events: a file of JSON lines such as {"user_key": "42", "item_key": "50", "time": '
        '893286638, "event_id": "e1"}, - for the standard input, or redis://HOST:PORT/STREAM',
    )
    parser.add_argument(
        "--store",
        required=True,
        metavar="PLACE",
        help="states: memory:, file:PATH, or redis://HOST:PORT/DATABASE[?prefix=TEXT]",
    )
    parser.add_argument("--follow", action="store_true", help="wait for more at the end")
    parser.add_argument(
        "--recommend",
        type=int,
        default=0,
        metavar="K",
        help="print the best K items of each user whose state is new, as a JSON line",
    )
    _add_rules(parser)
    parser.add_argument(
        "--offset",
        default="",
        metavar="FILE",
        help="how far a file was read (default: SOURCE.offset)",
    )
    parser.add_argument("--group", default="ftmamba", help="of a stream's consumers")
    parser.add_argument(
        "--consumer", default="", help="unlike others of the group (default: the machine's name)"
    )
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")


def _add_rules(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--late",
        choices=("refuse", "accept", "recompute"),
        default="refuse",
        help="events older than their user's newest: drop them, take them as if they were as new, "
        "or compute the user anew from the file of events (default: refuse)",
    )
    parser.add_argument("--batch", type=int, default=256, help="events at once (default: 256)")
    parser.add_argument(
        "--ttl",
        type=float,
        default=0,
        metavar="SECONDS",
        help="forget users so long after an event",
    )
    parser.add_argument(
        "--float16", action="store_true", help="keep states in half the room, a little rounded"
    )


def run(arguments: Namespace) -> None:
    """Take in events to their end, or until Ctrl-C, and print what has become of them."""
    import torch

    from ftmamba.checkpoint import load_to_recommend
    from ftmamba.streaming import CheckpointObserver, consume

    _check(arguments)
    checkpoint = load_to_recommend(arguments.checkpoint, revision=arguments.revision)
    observer = CheckpointObserver(checkpoint, dtype=torch.float16 if arguments.float16 else None)
    store, source = _open(arguments)
    report = _Report(arguments.follow)
    try:
        consume(
            source,
            store,
            observer,
            _rules(arguments, source),
            updated=_recommend(checkpoint, arguments.recommend) if arguments.recommend else None,
            progress=report,
            report=_tell,
        )
    except KeyboardInterrupt:
        _tell("stopped; what was not acknowledged comes again")
    finally:
        source.close()
        n_users = _close(store)
    print(report.summary(n_users))


def _check(arguments: Namespace) -> None:
    if arguments.recommend < 0:
        raise ValueError(f"--recommend must be 0 (none) or more, got {arguments.recommend}")
    if arguments.store == "memory:" and "://" in arguments.source:
        raise ValueError(
            "--store memory: forgets at its end what it has acknowledged to a stream, which does "
            "not come again; give --store file:PATH or a Redis"
        )


def _open(arguments: Namespace) -> "tuple[StateStore, Source]":
    from ftmamba.streaming.opening import Reading, open_source, open_store
    from ftmamba.streaming.redis_backend import Member

    reading = Reading(
        follow=arguments.follow,
        offset_file=arguments.offset,
        # States that are gone at the end have to be made of all events again.
        from_start=arguments.store == "memory:",
        member=Member(arguments.group, arguments.consumer),
        report=_tell,
    )
    source = open_source(arguments.source, reading)
    try:
        return open_store(arguments.store, ttl_seconds=arguments.ttl, report=_tell), source
    except BaseException:
        source.close()
        raise


def _rules(arguments: Namespace, source: "Source") -> "Rules":
    from ftmamba.streaming import Rules
    from ftmamba.streaming.sources import FileHistory, JsonLinesSource

    history = None
    if isinstance(source, JsonLinesSource):
        history = FileHistory(arguments.source, source)
    return Rules(
        batch_size=arguments.batch,
        n_event_ids=max(256, arguments.batch),
        late=arguments.late,
        history=history,
    )


def _close(store: "StateStore") -> int | None:
    """Close a store; return its users, None where it does not answer."""
    try:
        return len(store)
    except (OSError, ValueError):
        return None
    finally:
        store.close()


def _tell(text: str) -> None:
    print(f"ftmamba: {text}", file=sys.stderr, flush=True)


def _recommend(checkpoint: "Checkpoint", k: int) -> "Callable[[Sequence[str], Tensor], None]":
    """Return what prints the best items of users."""
    import torch

    from modeling_ftmamba.catalogue import top_k

    model: Any = checkpoint.model
    catalogue = checkpoint.catalogue
    items_IE = torch.from_numpy(catalogue.embeddings).to(model.device)
    if k > len(catalogue):
        raise ValueError(f"--recommend must be {len(catalogue)} or less, the items, got {k}")

    def show(user_keys: Sequence[str], embeds: "Tensor") -> None:
        _, ids_UK = top_k(embeds.to(items_IE.dtype) @ items_IE.T, k)
        for key, ids in zip(user_keys, ids_UK.tolist(), strict=True):
            line = {"user_key": key, "item_keys": [catalogue.keys[row] for row in ids]}
            print(json.dumps(line, ensure_ascii=False), flush=True)

    return show


class _Report:
    """Counts, and how many a second; printed now and then while events are waited for."""

    def __init__(self, follow: bool) -> None:
        from ftmamba.streaming import Counts

        self._follow = follow
        self._counts = Counts()
        self._began = self._told_at = time.monotonic()
        self._told = 0

    def __call__(self, counts: "Counts") -> None:
        self._counts = counts
        now = time.monotonic()
        if not self._follow or now - self._told_at < SECONDS_BETWEEN_LINES:
            return
        if counts.messages > self._told:
            rate = (counts.messages - self._told) / (now - self._told_at)
            _tell(f"{counts.messages} messages, {rate:,.0f}/s, {counts.updates} updates")
        self._told, self._told_at = counts.messages, now

    def summary(self, n_users: int | None) -> str:
        """Return what has become of all messages, a line for each kind that there were."""
        seconds = time.monotonic() - self._began
        counts = {name.replace("_", " "): count for name, count in vars(self._counts).items()}
        shown = {
            name: f"{count:,}"
            for name, count in counts.items()
            if count or name in ("messages", "observed")
        }
        shown["messages"] += f"  in {seconds:.1f} s, {counts['messages'] / seconds:,.0f}/s"
        if n_users is not None:
            shown["users in the store"] = f"{n_users:,}"
        width = max(map(len, shown))
        return "\n".join(f"{name:<{width}}  {text}" for name, text in shown.items())
