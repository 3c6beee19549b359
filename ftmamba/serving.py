"""A checkpoint behind HTTP: JSON in, recommendations out, users' states kept up to date by events.

Every answer is the one of `Recommender`, or of `CheckpointObserver` for a user whose events came in
here or through `ftmamba stream` with the same store. A request is computed in a thread with the
checkpoint that was loaded when it began, so replacing the checkpoint drops no request.
"""

import asyncio
import json
import logging
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from hmac import compare_digest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, NamedTuple, TypeVar

import torch
from fastapi import FastAPI, Query
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ftmamba.checkpoint import Checkpoint, find_checkpoint, load_to_recommend
from ftmamba.recommender import Recommender
from ftmamba.streaming import (
    Batch,
    CheckpointObserver,
    Refused,
    Rules,
    StateStore,
    UserEvent,
    observe_events,
)
from ftmamba.streaming.events import EVENT_FIELDS, parse_event
from ftmamba.streaming.stores import check_key
from modeling_ftmamba.configuration_ftmamba import near
from modeling_ftmamba.encoders import text_of
from modeling_ftmamba.processing_ftmamba import Event

MOST_EVENTS = 256
"""In one request."""

_OUTCOMES = ("observed", "duplicates", "late", "unknown_items", "malformed", "too_large")
_OPEN_PATHS = ("/healthz", "/readyz")
"""Answered without the API key."""

_FILES = ("*.json", "*.safetensors", "*.yaml", "README.md", "local/*")
"""What is read of a checkpoint."""

_SECONDS_FOR_STORE = 2.0
_BUCKETS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_ERRORS = {
    400: "the request is wrong; the message says what",
    401: "the API key is missing or wrong",
    404: "no such user, item or path",
    413: "the body is too large",
    429: "too many requests at once",
    500: "a fault of the server, which its log names",
    503: "the users' states cannot be reached",
}

Answer = TypeVar("Answer")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServingOptions:
    """How a checkpoint is served.

    Attributes:
        checkpoint: folder, or id on the Hub; a folder is loaded again when its files change.
        revision: branch, tag or commit on the Hub.
        late: what happens to events older than their user's newest; see `Rules`.
        float16: keep states in half the space, slightly rounded.
        most_k: items that one request may ask for.
        most_body_bytes: of a request.
        most_requests: computed or waiting at once; further ones are refused.
        threads: requests computed at once; several wait for each other in Python, workers do not.
        watch_seconds: between two looks at the folder.
    """

    checkpoint: str
    revision: str | None = None
    late: str = "refuse"
    float16: bool = False
    most_k: int = 100
    most_body_bytes: int = 2**20
    most_requests: int = 64
    threads: int = 1
    watch_seconds: float = 1.0

    def __post_init__(self) -> None:
        for name in ("most_k", "most_body_bytes", "most_requests", "threads", "watch_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be more than 0, got {getattr(self, name)}")


class RequestError(Exception):
    """Why a request is refused: a status of HTTP and a sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


Key = str | int | float | bool


class User(_Body):
    """A user: a key, or a record and a history."""

    user_key: Key | None = Field(None, description="a known user, or one with events")
    record: dict[str, Any] | None = Field(None, description="raw columns of any user")
    history: list[str | int | dict[str, Any]] | None = Field(
        None, description="earlier events, oldest first: keys of items, or objects with 'item'"
    )


class RecommendRequest(User):
    """Ask for the best items of a user."""

    k: int = Field(10, ge=1, description="how many")
    exclude: list[Key] = Field([], description="keys of items to leave out")
    exclude_seen: bool | None = Field(
        None, description="leave out the seen items; by default as the model was evaluated"
    )


class ExplainRequest(User):
    """Ask why an item is recommended."""

    item_key: Key


class Item(BaseModel):
    """A recommended item."""

    item_key: str
    score: float
    title: str


class Items(BaseModel):
    """Items, best first, and the fingerprint of the weights that ranked them."""

    items: list[Item]
    model: str


class RefusedEvent(BaseModel):
    """An event that changes nothing: its kind, such as `late`, why, and the event as JSON."""

    kind: str
    reason: str
    message: str


class EventsAnswer(BaseModel):
    """What became of the events."""

    observed: int
    duplicates: int
    late: int
    refused: list[RefusedEvent]


class ErrorText(BaseModel):
    """An error in words."""

    status: int
    message: str


class ErrorAnswer(BaseModel):
    """The answer to a request that is refused."""

    error: ErrorText


class Loaded(NamedTuple):
    """A checkpoint in memory; `observer` is None if the model has no history."""

    checkpoint: Checkpoint
    recommender: Recommender
    observer: CheckpointObserver | None
    mark: object


class Metrics:
    """What `/metrics` tells, of all workers if PROMETHEUS_MULTIPROC_DIR is set."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
            registry = CollectorRegistry()
        name, kind = "ftmamba_request_seconds", ["path"]
        self.seconds = Histogram(name, "time to answer", kind, registry=registry, buckets=_BUCKETS)
        name, kind = "ftmamba_errors", ["path", "status"]
        self.errors = Counter(name, "requests that were refused", kind, registry=registry)
        name, kind = "ftmamba_events", ["outcome"]
        self.events = Counter(name, "events by what became of them", kind, registry=registry)
        name = "ftmamba_state_bytes"
        self.state_bytes = Gauge(
            name, "size of one user's state", registry=registry, multiprocess_mode="mostrecent"
        )
        name, kind = "ftmamba_loads", ["outcome"]
        self.loads = Counter(name, "checkpoints loaded or refused", kind, registry=registry)


class Service:
    """Answers requests, without HTTP; its methods may be called from several threads.

    Args:
        options: what to serve, and limits.
        store: of users' states; closed by `close`.

    Raises:
        ValueError, OSError: as `load_to_recommend` raises.
    """

    def __init__(self, options: ServingOptions, store: StateStore) -> None:
        self.options, self.store, self.metrics = options, store, Metrics()
        self.problem = ""
        self.loaded = self._load()
        self._pool, self._n_waiting = ThreadPoolExecutor(options.threads, "ftmamba"), 0

    def close(self) -> None:
        """Finish what is being computed, and close the store."""
        self._pool.shutdown()
        self.store.close()

    async def compute(self, work: Callable[..., Answer], *arguments: Any) -> Answer:
        """Return what a method answers, given the checkpoint of now, computed in a thread.

        Raises:
            RequestError: the request cannot be answered.
        """
        if self._n_waiting >= self.options.most_requests:
            problem = f"{self._n_waiting} requests are being answered already"
            raise RequestError(429, f"{problem}; send it again later")
        self._n_waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._pool, work, self.loaded, *arguments)
        except ValueError as error:
            raise RequestError(400, str(error)) from None
        except OSError as error:
            logger.error("the states cannot be reached: %s", error)
            raise RequestError(
                503,
                "the users' states cannot be reached at the moment; send the request again, with "
                "the same event_id an event counts once",
            ) from None
        finally:
            self._n_waiting -= 1

    async def watch(self) -> None:
        """Load the checkpoint again whenever its files have changed, without an end."""
        while True:
            await asyncio.sleep(self.options.watch_seconds)
            await asyncio.to_thread(self.reload)

    def _files(self) -> tuple[Path, dict[Path, object]]:
        """Return the checkpoint's folder, and its files with what changes when they do."""
        folder = find_checkpoint(self.options.checkpoint, revision=self.options.revision)
        facts = {path: path.stat() for name in _FILES for path in sorted(folder.glob(name))}
        return folder, {p: (x.st_ino, x.st_mtime_ns, x.st_size) for p, x in facts.items()}

    def _load(self) -> Loaded:
        """Load from a copy: a file that is overwritten would change, or end, what has mapped it."""
        options = self.options
        folder, mark = self._files()
        with TemporaryDirectory(prefix="ftmamba-") as copy:
            for path in mark:
                own = Path(copy, path.relative_to(folder))
                own.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, own)
            if self._files()[1] != mark:
                raise ValueError(f"{str(folder)!r} changed while it was loaded")
            try:
                checkpoint = load_to_recommend(copy)
            except (ValueError, OSError) as error:
                raise ValueError(str(error).replace(copy, str(folder))) from None
        recommender, observer = Recommender(checkpoint), None
        if any(column["kind"] == "history" for column in checkpoint.extractor.user_columns):
            observer = CheckpointObserver(
                checkpoint, dtype=torch.float16 if options.float16 else None
            )
            first = UserEvent("", Event("", float("nan"), float("nan"), {}))
            self.metrics.state_bytes.set(len(observer.pack(observer.start([first]))[0]))
        self.metrics.loads.labels("loaded").inc()
        return Loaded(checkpoint, recommender, observer, mark)

    def reload(self) -> None:
        """Load the checkpoint again if its files have changed; keep the old one if that fails."""
        if not Path(self.options.checkpoint).expanduser().exists():
            return  # On the Hub, or between the two renames of a folder that is replaced.
        try:
            if self._files()[1] == self.loaded.mark:
                self.problem = ""
                return
            self.loaded, self.problem = self._load(), ""
            logger.warning("loaded %s, which has changed", self.options.checkpoint)
        except (ValueError, OSError) as error:
            self.metrics.loads.labels("refused").inc()
            if str(error) != self.problem:
                logger.error("the changed checkpoint is not loaded, the old one stays: %s", error)
            self.problem = str(error)

    def recommend(self, loaded: Loaded, request: RecommendRequest) -> dict[str, Any]:
        """Return the best items of a user."""
        self._check_k(request.k, len(loaded.recommender.catalogue))
        key, record = self._user(loaded, request)
        options = {name: getattr(request, name) for name in ("k", "exclude", "exclude_seen")}
        state = None if key is None else self._state(loaded, key)
        if key is None or state is None:
            who: dict[str, Any] = {"record": record}
            if key is not None:
                self._check_known(loaded, key)
                who = {"user_key": key}
            return self._items(loaded, loaded.recommender.recommend(**who, **options))
        assert loaded.observer is not None
        catalogue = loaded.recommender.catalogue
        ranked = loaded.observer.ranked([key], state, **options)[0]
        items = [
            {"item_key": catalogue.keys[row], "score": score, "title": catalogue.titles[row]}
            for row, score in ranked
        ]
        return {"items": items, "model": catalogue.fingerprint}

    def observe(self, loaded: Loaded, bodies: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Bring the states of the users of some events up to date."""
        observer = loaded.observer
        if observer is None:
            raise RequestError(400, "the model has no column of kind 'history', so no event counts")
        if not 1 <= len(bodies) <= MOST_EVENTS:
            raise RequestError(400, f"a request must have 1 to {MOST_EVENTS} events")
        events, refused = list[UserEvent](), list[Refused]()
        for index, body in enumerate(bodies):
            try:
                events.append(_event(body))
            except ValueError as error:
                reason = f"event {index} (the first is 0): {error}"
                refused.append(Refused("malformed", reason, json.dumps(body)))
        batch, refused = Batch(events, refused), []
        rules = Rules(late=self.options.late, refuse=refused.extend)
        try:
            counts = observe_events(batch, self.store, observer, rules)
        except ValueError:
            if not self._forget_unreadable(observer, {event.user_key for event in events}):
                raise
            refused.clear()
            counts = observe_events(batch, self.store, observer, rules)
        for name in _OUTCOMES:
            self.metrics.events.labels(name).inc(getattr(counts, name))
        if counts.malformed + counts.unknown_items == len(batch):
            reasons = "; ".join(dict.fromkeys(one.reason for one in refused))
            raise RequestError(400 if counts.malformed else 404, reasons)
        answer = {name: getattr(counts, name) for name in ("observed", "duplicates", "late")}
        return {**answer, "refused": [vars(one) for one in refused]}

    def similar(self, loaded: Loaded, item_key: str, k: int) -> dict[str, Any]:
        """Return the items most like one."""
        self._check_k(k, len(loaded.recommender.catalogue) - 1)
        self._check_item(loaded, item_key)
        return self._items(loaded, loaded.recommender.similar_items(item_key, k))

    def explain(self, loaded: Loaded, request: ExplainRequest) -> dict[str, Any]:
        """Return what each column adds to the score of an item for a user."""
        self._check_item(loaded, request.item_key)
        key, record = self._user(loaded, request)
        user: Any = record
        if key is not None:
            if self._state(loaded, key) is not None:
                problem = "events have changed this user, and a state cannot be taken apart"
                raise RequestError(400, f"{problem}; give record and history instead of user_key")
            self._check_known(loaded, key)
            user = key
        item_key = text_of(request.item_key) or ""
        return loaded.recommender.explain(user, item_key).to_dict()

    def _user(self, loaded: Loaded, request: User) -> tuple[str | None, dict[str, Any] | None]:
        """Return the key of a request's user, or the record with its history."""
        key, record = request.user_key, request.record
        if request.history is not None:
            columns = loaded.checkpoint.extractor.user_columns
            name = next((one["name"] for one in columns if one["kind"] == "history"), None)
            if name is None:
                raise RequestError(400, "the model has no column of kind 'history'; leave it out")
            if record and record.get(name) is not None:
                raise RequestError(400, f"give history, or the record's {name!r}, not both")
            record = {**(record or {}), name: request.history}
        if (key is None) == (record is None):
            given = "none" if key is None else "both"
            rule = "give either user_key, or record and history, of a user"
            raise RequestError(400, f"{rule}; got {given}")
        if key is None:
            return None, record
        text = text_of(key) or ""
        check_key(text)
        return text, None

    def _state(self, loaded: Loaded, key: str) -> Any:
        """Return the state that events have left of a user, None without or of other weights."""
        stored = None if loaded.observer is None else self.store.get([key])[0]
        if stored is None or loaded.observer is None:
            return None
        try:
            return loaded.observer.unpack([stored.state])
        except ValueError:
            self.metrics.events.labels("unreadable_state").inc()
            return None

    def _forget_unreadable(self, observer: CheckpointObserver, user_keys: set[str]) -> bool:
        """Delete states of other weights, which start again; return whether there were any."""
        unreadable = []
        for key in user_keys:
            stored = self.store.get([key])[0]
            try:
                if stored is not None:
                    observer.unpack([stored.state])
            except ValueError as error:
                logger.warning("user %.80r starts again: %s", key, error)
                unreadable.append(self.store.delete(key))
        self.metrics.events.labels("unreadable_state").inc(len(unreadable))
        return bool(unreadable)

    def _check_k(self, k: int, most: int) -> None:
        most = min(most, self.options.most_k)
        if not 1 <= k <= most:
            raise RequestError(400, f"k must be from 1 to {most}, got {k!r:.40}")

    def _check_known(self, loaded: Loaded, key: str) -> None:
        users = loaded.recommender.users
        if users is None:
            problem = f"no user {key!r:.80}: the checkpoint knows none by key, and no event came in"
            raise RequestError(404, f"{problem}; give record or history, or post events first")
        try:
            users.row(key)
        except ValueError as error:
            raise RequestError(404, str(error)) from None

    def _check_item(self, loaded: Loaded, item_key: Key) -> None:
        if loaded.recommender.catalogue.rows([item_key])[0] is not None:
            return
        try:
            loaded.recommender.catalogue.row(text_of(item_key) or "")
        except ValueError as error:
            raise RequestError(404, str(error)) from None

    def _items(self, loaded: Loaded, found: Sequence[Any]) -> dict[str, Any]:
        model = loaded.recommender.catalogue.fingerprint
        return {"items": [asdict(one) for one in found], "model": model}


def _event(body: Mapping[str, Any]) -> UserEvent:
    for name in body:
        if name not in EVENT_FIELDS:
            raise ValueError(
                f"it has the field {name!r:.80}{near(name, EVENT_FIELDS)}, which no event has; it "
                f"may have {', '.join(EVENT_FIELDS)}"
            )
    return parse_event(json.dumps(body))


class _Gate:
    """Measures every request; refuses those without the key or with too large a body."""

    def __init__(self, app: ASGIApp, *, service: Service, api_key: str) -> None:
        self._app, self._service, self._key = app, service, api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, n_bytes = time.perf_counter(), 0, 0
        most = self._service.options.most_body_bytes

        async def sent(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        async def received() -> Message:
            nonlocal n_bytes
            message = await receive()
            n_bytes += len(message.get("body", b""))
            if n_bytes > most:
                raise HTTPException(413, f"the body may have {most} bytes, this one has more")
            return message

        try:
            headers = dict(scope["headers"])
            if refusal := self._refusal(scope["path"], headers):
                await refusal(scope, receive, sent)
            else:
                await self._app(scope, received, sent)
        except Exception as error:
            logger.error("a request failed", exc_info=error)
            if not status:
                answer = error_answer(
                    500, "the request could not be answered; see the server's log"
                )
                await answer(scope, receive, sent)
        path = getattr(scope.get("route"), "path", "other")
        self._service.metrics.seconds.labels(path).observe(time.perf_counter() - began)
        if status >= 400:
            self._service.metrics.errors.labels(path, str(status)).inc()

    def _refusal(self, path: str, headers: Mapping[bytes, bytes]) -> Response | None:
        given = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        if self._key and path not in _OPEN_PATHS and not compare_digest(given, self._key):
            answer = error_answer(401, "give the API key as the header Authorization: Bearer KEY")
            answer.headers["WWW-Authenticate"] = "Bearer"
            return answer
        length = headers.get(b"content-length", b"0")
        most = self._service.options.most_body_bytes
        if length.isdigit() and int(length) > most:
            return error_answer(413, f"the body may have {most} bytes, this one has {int(length)}")
        return None


def error_answer(status: int, message: str) -> JSONResponse:
    """Return an error in words; JSON can spell a text that UTF-8 cannot, so it is replaced."""
    text = " ".join(message.encode("utf-8", "replace").decode().split())[:1000]
    answer = JSONResponse({"error": {"status": status, "message": text}}, status)
    if status in (429, 503):
        answer.headers["Retry-After"] = "1"
    return answer


async def _refused(_request: Any, error: RequestError) -> Response:
    return error_answer(error.status, str(error))


async def _not_served(_request: Any, error: HTTPException) -> Response:
    answer = error_answer(error.status_code, str(error.detail))
    answer.headers.update(error.headers or {})
    return answer


async def _malformed(_request: Any, error: RequestValidationError) -> Response:
    problems = [
        f"{'.'.join(map(str, one['loc'][1:])) or one['loc'][0]}: {one['msg']}"
        for one in error.errors()[:3]
    ]
    return error_answer(400, "; ".join(problems))


def make_app(
    service: Service,
    *,
    api_key: str = "",
    example_of: Callable[[Checkpoint], Mapping[str, Any]] = lambda _: {},
) -> FastAPI:
    """Return the application; the service closes with it.

    Args:
        service: which answers.
        api_key: demanded of every request but `/healthz` and `/readyz`; empty for none.
        example_of: makes the record that the OpenAPI page shows.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(service.watch())
        yield
        watching.cancel()
        service.close()

    handlers: Any = {
        RequestError: _refused,
        HTTPException: _not_served,
        RequestValidationError: _malformed,
    }
    app = FastAPI(title="FT-Mamba", lifespan=lifespan, redoc_url=None, exception_handlers=handlers)
    app.add_middleware(_Gate, service=service, api_key=api_key)
    compute = service.compute

    @app.post("/recommend", response_model=Items)
    async def recommend(request: RecommendRequest) -> Response:
        """Return the best items of a user, best first."""
        return JSONResponse(await compute(service.recommend, request))

    @app.post("/events", response_model=EventsAnswer)
    async def events(request: dict[str, Any] | list[dict[str, Any]]) -> Response:
        """Observe one event or several; the next `/recommend` of their users knows them."""
        bodies = [request] if isinstance(request, dict) else request
        return JSONResponse(await compute(service.observe, bodies))

    @app.get("/similar", response_model=Items)
    async def similar(item_key: str, k: Annotated[int, Query(ge=1)] = 10) -> Response:
        """Return the items most like one, by the cosine of their embeddings."""
        return JSONResponse(await compute(service.similar, item_key, k))

    @app.post("/explain", response_model=dict[str, Any])
    async def explain(request: ExplainRequest) -> Response:
        """Return what each column adds to the score of an item for a user."""
        return JSONResponse(await compute(service.explain, request))

    @app.get("/healthz", response_model=dict[str, Any])
    async def healthz() -> Response:
        """Say that the process runs."""
        return JSONResponse({"status": "ok"})

    @app.get("/readyz", response_model=dict[str, Any])
    async def readyz() -> Response:
        """Say whether requests can be answered: 503 while the store of the states is away."""
        asked = asyncio.to_thread(service.store.get, ["readyz"])
        try:
            await asyncio.wait_for(asked, _SECONDS_FOR_STORE)
        except (OSError, ValueError) as error:
            reason = str(error) or f"no answer in {_SECONDS_FOR_STORE:.0f} s"
            return error_answer(503, f"the users' states cannot be reached: {reason}")
        model = service.loaded.recommender.catalogue.fingerprint
        return JSONResponse({"status": "ready", "model": model, "problem": service.problem})

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Return latency, events, errors and the size of a state, as Prometheus reads them."""
        return PlainTextResponse(generate_latest(service.metrics.registry))

    app.openapi = lambda: _described(  # type: ignore[method-assign]
        app, service.loaded, dict(example_of(service.loaded.checkpoint))
    )
    return app


def _described(app: FastAPI, loaded: Loaded, record: dict[str, Any]) -> dict[str, Any]:
    """Describe the paths, with examples of the columns and items of a checkpoint."""
    described = get_openapi(title=app.title, version=app.version, routes=app.routes)
    item_key = loaded.recommender.catalogue.keys[0]
    event = {"user_key": "new", "item_key": item_key, "event_id": "e1"}
    recommend: dict[str, Any] = {"record": record, "k": 3}
    if loaded.observer is not None:
        recommend["history"] = [item_key]
    examples: dict[str, Any] = {
        "/recommend": recommend,
        "/events": event,
        "/explain": {"record": record, "item_key": item_key},
    }
    schemas = described["components"]["schemas"]
    schemas["ErrorAnswer"] = {
        **ErrorAnswer.model_json_schema(ref_template="#/components/schemas/{model}")
    }
    schemas |= schemas["ErrorAnswer"].pop("$defs")
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    reference = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}}
    for path, methods in described["paths"].items():
        for operation in methods.values():
            operation["responses"].pop("422", None)
            for status, text in _ERRORS.items():
                operation["responses"][str(status)] = {"description": text, "content": reference}
            if path in examples:
                operation["requestBody"]["content"]["application/json"]["example"] = examples[path]
    return described
