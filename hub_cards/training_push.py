"""Push what a training run saves, in the background: training continues when the Hub fails."""

import json
import logging
import os
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from markupsafe import Markup

from ftmamba.checkpoint import CARD_FILE, RECIPE_FILE, RESULTS_FILE, recipe_text, save_network
from ftmamba.data.tables import Tables
from ftmamba.hub import Backoff, HubError, hide_tokens, known_tokens
from ftmamba.recipe import Recipe
from ftmamba.table_embedding import embed_catalogue
from ftmamba.training.checkpoints import Progress, TrainingCheckpoint
from ftmamba.training.run import make_protocol
from hub_cards.card import render
from hub_cards.contents import TRAINING_FOLDER, list_contents, personal_warning, published_files
from hub_cards.merge import PROVISIONAL_TITLE, UNDER_WAY
from hub_cards.push import (
    MAIN,
    Destination,
    check_rights,
    hub_errors,
    prepare,
    push_checkpoint,
)
from modeling_ftmamba.catalogue import CATALOGUE_NAME

logger = logging.getLogger(__name__)

STATES_BRANCH = "checkpoints"


@dataclass(frozen=True)
class Upload:
    """Something to push.

    Attributes:
        name: for people, such as "step 1200, epoch 3".
        branch: of uploads to the same branch only the newest is pushed.
        push: sends it and returns its address on the Hub; raises `HubError`.
        discard: called once it is pushed, or replaced by a newer one.
        command: pushes it later; without one it is tried only once.
    """

    name: str
    branch: str
    push: Callable[[], str]
    discard: Callable[[], None]
    command: str


class BackgroundPusher:
    """Sends uploads one after the other; of those that wait for one branch, only the newest.

    A failure that may pass is tried again after a wait; what the Hub refuses is tried again with
    the next upload, and at the end. No error reaches the caller. `HfApi.run_as_future` has none of
    this, and its threads would keep a process alive whose Hub never answers.
    """

    def __init__(self, *, backoff: Backoff | None = None) -> None:
        self._backoff = backoff or Backoff()
        self._changed = threading.Condition()
        self._waiting: dict[str, Upload] = {}
        self._reasons: dict[str, str] = {}
        self._refused: set[str] = set()
        self._sending: Upload | None = None
        self._not_before = 0.0
        self._asked_to_wait = False
        self._deadline: float | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="push-to-hub", daemon=True)
        self._thread.start()

    def put(self, upload: Upload) -> None:
        """Queue an upload; it replaces an older one for the same branch."""
        with self._changed:
            replaced = self._waiting.pop(upload.branch, None)
            self._waiting[upload.branch] = upload
            self._refused.discard(upload.branch)
            self._changed.notify_all()
        if replaced is not None:
            logger.info("not pushed, replaced by a newer state: %s", replaced.name)
            replaced.discard()

    def close(self, seconds: float) -> list[tuple[Upload, str]]:
        """Wait until everything is pushed, at most so long; return what is missing, and why."""
        with self._changed:
            self._deadline = time.monotonic() + seconds
            self._refused.clear()
            if not self._asked_to_wait:
                self._not_before = 0.0
            self._changed.notify_all()
        self._thread.join(seconds)
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            left = dict(self._waiting)
            if self._sending is not None:
                left.setdefault(self._sending.branch, self._sending)
        late = "the Hub had not answered when the wait was over"
        return [(one, self._reasons.get(branch, late)) for branch, one in left.items()]

    def _work(self) -> None:
        while (upload := self._next()) is not None:
            try:
                url = upload.push()
            except HubError as error:
                self._fail(upload, error)
            except Exception as error:
                logger.debug("pushing failed", exc_info=True)
                message = hide_tokens(f"cannot push {upload.name}: {error!r}", known_tokens())
                self._fail(upload, HubError(message, may_pass=False))
            else:
                self._backoff.reset()
                with self._changed:
                    self._sending = None
                    self._reasons.pop(upload.branch, None)
                logger.info("on the Hub: %s (%s)", upload.name, url)
                upload.discard()

    def _next(self) -> Upload | None:
        """Wait for the next upload that may be sent; None where nothing is left to do."""
        with self._changed:
            while not self._stopped:
                ready = [one for one in self._waiting.values() if one.branch not in self._refused]
                if not ready and self._deadline is not None:
                    return None
                wait = self._not_before - time.monotonic() if ready else None
                if wait is not None and wait <= 0:
                    self._sending = self._waiting.pop(ready[0].branch)
                    return self._sending
                self._changed.wait(wait)
        return None

    def _fail(self, upload: Upload, error: HubError) -> None:
        """Queue an upload again, unless a newer one has come or it is tried only once."""
        with self._changed:
            self._sending = None
            self._reasons[upload.branch] = str(error)
            again = bool(upload.command) and upload.branch not in self._waiting
            if again:
                self._waiting[upload.branch] = upload
            plan = "last try" if self._deadline is not None else "next try with the next save"
            if error.may_pass:
                wait = self._backoff.next(error.retry_after)
                if self._deadline is not None and error.retry_after is None:
                    # One more try has to fit in.
                    left = self._deadline - time.monotonic()
                    wait = max(min(wait, left / 2), self._backoff.first)
                self._asked_to_wait = error.retry_after is not None
                self._not_before = time.monotonic() + wait
                plan = f"next try in {wait:.0f} s"
            elif again:
                self._refused.add(upload.branch)
        logger.warning("%s (training continues; %s)", error, plan)
        if not again:
            upload.discard()


def check_hub(recipe: Recipe) -> None:
    """Raise ValueError, before anything is trained, where pushing cannot succeed.

    A Hub that does not answer, or not now, stops no training.
    """
    found = _find_token(recipe.to_dict(), known_tokens())
    if found:
        raise ValueError(
            f"{found} of the recipe holds an access token, and recipes are published; take it out "
            "and set HF_TOKEN, or run `hf auth login`"
        )
    if not recipe.push_to_hub:
        return
    destination = Destination(recipe.hub_model_id)
    if get_token() is None:
        raise ValueError(
            "push_to_hub needs an access token that may write; run `hf auth login`, or set HF_TOKEN"
        )
    if os.environ.get("RANK", "0") != "0":
        return  # only the main process pushes
    try:
        check_rights(destination, HfApi())
    except HubError as error:
        if error.status in (401, 403, 404):
            raise ValueError(str(error)) from None
        logger.warning("%s (training begins; the push is tried later)", error)


def _find_token(values: Mapping[str, Any], tokens: tuple[str, ...], above: str = "") -> str:
    """Return the dotted name of the first value that holds a token, an empty text for none."""
    for key, value in values.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping):
            if found := _find_token(value, tokens, f"{name}."):
                return found
            continue
        # What signs an address comes after its question mark; it is used here and not published.
        whole, bare = str(value), str(value).partition("?")[0]
        if any(token in whole for token in tokens) or hide_tokens(bare) != bare:
            return name
    return ""


@contextmanager
def pushing(recipe: Recipe, tables: Tables, *, is_main: bool) -> Iterator["TrainingPush | None"]:
    """Push what the block saves; at its end wait for the Hub, at most `hub_patience` seconds.

    After an error the last saved state is still pushed; after Ctrl-C nothing is waited for.

    Yields:
        None where this process does not push: the recipe does not ask for it, or another one does.
    """
    if not (recipe.push_to_hub and is_main):
        yield None
        return
    with tokens_hidden_in_logs(), _no_progress_bars():
        push = TrainingPush(recipe, tables)
        try:
            yield push
        except Exception:
            push.close(recipe.hub_patience)
            raise
        except BaseException:
            push.close(0)
            raise
        push.close(recipe.hub_patience)


class TrainingPush:
    """Pushes a run's states, by its strategy, and its finished checkpoint."""

    def __init__(self, recipe: Recipe, tables: Tables, *, api: HfApi | None = None) -> None:
        self._recipe, self._tables = recipe, tables
        self._api = api or HfApi()
        self._output = Path(recipe.output_dir).expanduser().resolve()
        # Beside the run's folder: the end of the run replaces that one as a whole.
        self._queue_folder = self._output.with_name(f"{self._output.name}.to-push")
        self._listed = False
        self._pusher = BackgroundPusher()

        def make_repository() -> str:
            destination = Destination(recipe.hub_model_id, private=recipe.hub_private)
            with hub_errors(f"make {destination.repo_id!r}", known_tokens(self._api.token)):
                prepare(destination, self._api)
            return f"{self._api.endpoint}/{destination.repo_id}"

        # At once: what a token may not make shows before the training, not after.
        self._pusher.put(Upload("the repository", "", make_repository, lambda: None, command=""))

    def on_save(self, saved: TrainingCheckpoint) -> None:
        """Queue a saved state, where the strategy pushes states."""
        recipe = self._recipe
        if recipe.hub_strategy == "end":
            return
        folder = self._queue_folder / saved.folder.name

        def discard() -> None:
            shutil.rmtree(folder, ignore_errors=True)

        try:
            discard()
            write_state(folder, saved, recipe, self._tables)
            self._list(folder)
        except Exception as error:
            logger.warning("%s is not pushed, it could not be written: %r", folder.name, error)
            discard()
            return
        branch = STATES_BRANCH if recipe.hub_strategy == "checkpoint" else MAIN
        step = describe_step(saved.progress, recipe.evaluation.selection_metric)
        self._put(folder, branch, step[:1].upper() + step[1:], discard)

    def finish(self) -> None:
        """Queue the finished checkpoint."""
        try:
            self._list(self._output)
        except Exception as error:
            logger.warning("the finished checkpoint will not be pushed: %s", error)
        self._put(self._output, MAIN, describe_end(self._output, self._recipe), lambda: None)

    def close(self, patience: float) -> None:
        """Wait for uploads, at most so many seconds, and log what is missing."""
        for upload, reason in self._pusher.close(patience):
            if upload.command:
                logger.error(
                    "NOT ON THE HUB: %s. %s\nPush it later with:\n  %s",
                    upload.name, reason, upload.command,
                )  # fmt: skip
        if self._queue_folder.is_dir() and not any(self._queue_folder.iterdir()):
            self._queue_folder.rmdir()

    def _put(self, folder: Path, branch: str, message: str, discard: Callable[[], None]) -> None:
        recipe = self._recipe
        destination = Destination(recipe.hub_model_id, branch, private=recipe.hub_private)
        with_training_state = recipe.hub_training_state and folder != self._output

        def push() -> str:
            return push_checkpoint(
                folder,
                destination,
                message=message,
                with_catalogue=recipe.hub_catalogue,
                with_training_state=with_training_state,
                api=self._api,
            ).url

        command = ["python", "-m", "ftmamba", "push", str(folder), recipe.hub_model_id]
        command += ["--revision", branch] if branch != MAIN else []
        command += ["--message", message]
        command += ["--private"] if recipe.hub_private else []
        command += [] if recipe.hub_catalogue else ["--without-catalogue"]
        command += ["--training-state"] if with_training_state else []
        self._pusher.put(Upload(message, branch, push, discard, shlex.join(command)))

    def _list(self, folder: Path) -> None:
        """Log what will be pushed: all files the first time and at the end, else their number."""
        files = published_files(
            folder,
            with_catalogue=self._recipe.hub_catalogue,
            with_training_state=self._recipe.hub_training_state,
            tokens=known_tokens(self._api.token),
        )
        listing = list_contents(files)
        if self._listed and folder != self._output:
            listing = listing.splitlines()[-1]
        logger.info("pushing to %s:\n%s", self._recipe.hub_model_id, listing)
        if not self._listed and (warning := personal_warning(folder)):
            logger.warning("%s", warning)
        self._listed = True


def write_state(folder: Path, saved: TrainingCheckpoint, recipe: Recipe, tables: Tables) -> None:
    """Write a state of a run as a checkpoint that can be loaded and recommends."""
    folder.mkdir(parents=True)
    extractor = saved.data.extractor
    save_network(folder, saved.model, extractor, max_shard_size=recipe.max_shard_size)
    if recipe.hub_catalogue:
        catalogue = embed_catalogue(
            saved.model,
            saved.data.catalogue_rows(),
            keys=tables.item_keys,
            titles=tables.item_titles,
            as_of=saved.data.as_of,
            exclude_seen=make_protocol(recipe.evaluation).mask_seen,
        )
        catalogue.save(folder / CATALOGUE_NAME)
    (folder / CARD_FILE).write_text(unfinished_card(recipe, saved.progress), encoding="utf-8")
    (folder / RECIPE_FILE).write_text(recipe_text(recipe.to_dict()), encoding="utf-8")
    if recipe.hub_training_state:
        target = folder / TRAINING_FOLDER
        target.mkdir()
        for path in sorted(saved.folder.iterdir()):
            # Linked, so that the files outlive their folder; copied where links cannot be made.
            try:
                os.link(path, target / path.name)
            except OSError:
                shutil.copyfile(path, target / path.name)


def describe_step(progress: Progress, metric: str) -> str:
    """Return where a run is and how good: "step 120, epoch 3: NDCG@10 0.2931 on validation"."""
    step = f"step {progress.step}, epoch {progress.epoch + bool(progress.batch)}"
    scores = [one["score"] for one in progress.history if "score" in one]
    if scores:
        return f"{step}: {metric} {scores[-1]:.4f} on validation"
    losses = [one["loss"] for one in progress.history if "loss" in one]
    return f"{step}: loss {losses[-1]:.4f}" if losses else step


def describe_end(folder: Path, recipe: Recipe) -> str:
    """Return the message of the finished checkpoint's commit: how long, how good."""
    metric = recipe.evaluation.selection_metric
    try:
        results = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
        epochs = results["training"]["best_epoch"]
        own = next(iter(results["models"].values()))
        return f"Trained for {epochs} epochs: {metric} {own['metrics'][metric]:.4f} on the test"
    except (OSError, ValueError, LookupError, TypeError, StopIteration):
        return "Trained model"


def unfinished_card(recipe: Recipe, progress: Progress) -> str:
    """Return the card of a run that is not finished."""
    return render(
        "unfinished_card.md.jinja",
        licence=recipe.card.licence,
        title=recipe.card.title or recipe.hub_model_id.rpartition("/")[2],
        step=describe_step(progress, recipe.evaluation.selection_metric),
        provisional=Markup(PROVISIONAL_TITLE),
        under_way=Markup(UNDER_WAY),
    )


class _TokenFilter(logging.Filter):
    """Rewrites log records that hold a token, whichever library they come from."""

    def __init__(self, *tokens: str) -> None:
        super().__init__()
        self.tokens = tokens

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        hidden = hide_tokens(message, known_tokens(*self.tokens))
        if hidden != message:
            record.msg, record.args = hidden, ()
        if record.exc_info or record.exc_text:
            text = record.exc_text or logging.Formatter().formatException(record.exc_info)  # type: ignore[arg-type]
            record.exc_text = hide_tokens(text, known_tokens(*self.tokens))
        return True


@contextmanager
def tokens_hidden_in_logs(*tokens: str) -> Iterator[None]:
    """Hide tokens in what the present handlers of the root and of the Hub's client write."""
    token_filter = _TokenFilter(*tokens)
    handlers = [*logging.getLogger().handlers, *logging.getLogger("huggingface_hub").handlers]
    for handler in handlers:
        handler.addFilter(token_filter)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(token_filter)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Silence the client's bars, which would run through the training's own."""
    were_shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if were_shown:
            enable_progress_bars()
