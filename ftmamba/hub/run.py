"""A run that pushes: what it saves, as its strategy says, and its finished checkpoint."""

import json
import logging
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from ftmamba.checkpoint_folder import RESULTS_FILE
from ftmamba.data.tables import Tables
from ftmamba.hub.background import BackgroundPusher, Parcel
from ftmamba.hub.states import describe_step, write_state
from ftmamba.recipe import Recipe
from ftmamba.training.saved import Saved
from hub_cards.contents import list_contents, published_files
from hub_cards.personal import personal_columns, warning_of
from hub_cards.push import MAIN, Destination, prepare, push_checkpoint, told_without
from hub_cards.secrets import known_tokens, tokens_hidden_in_logs

logger = logging.getLogger(__name__)

BRANCH_OF_STATES = "checkpoints"


class HubRun:
    """Pushes in the background; nothing that goes wrong on the way stops the run."""

    def __init__(self, recipe: Recipe, tables: Tables, *, api: HfApi | None = None) -> None:
        self._recipe, self._tables = recipe, tables
        self._api = api or HfApi()
        self._output = Path(recipe.output_dir).expanduser().resolve()
        # Beside the run's folder: the end of the run replaces that one as a whole.
        self._waiting_room = self._output.with_name(f"{self._output.name}.to-push")
        self._told_all = False
        self._pusher = BackgroundPusher()
        self._pusher.put(self._opening())

    def saved(self, saved: Saved) -> None:
        """Let a saved state be pushed, where the strategy pushes such states."""
        recipe = self._recipe
        if recipe.hub_strategy == "end":
            return
        folder = self._waiting_room / saved.folder.name
        try:
            _discard(folder)
            write_state(folder, saved, recipe, self._tables)
            self._tell(folder)
        except Exception as error:
            logger.warning("%s is not pushed, it could not be written: %r", folder.name, error)
            _discard(folder)
            return
        revision = BRANCH_OF_STATES if recipe.hub_strategy == "checkpoint" else MAIN
        message = describe_step(saved.progress, recipe.evaluation.selection_metric)
        self._put(folder, revision, _capitalised(message), lambda: _discard(folder))

    def finish(self) -> None:
        """Let the finished checkpoint be pushed."""
        try:
            self._tell(self._output)
        except Exception as error:
            logger.warning("the finished checkpoint will not be pushed: %s", error)
        self._put(self._output, MAIN, describe_end(self._output, self._recipe), lambda: None)

    def close(self, patience: float) -> None:
        """Wait for what is on its way, at most so long, and say what is missing."""
        missing = [one for one in self._pusher.close(patience) if one.parcel.command]
        for one in missing:
            logger.error(
                "NOT ON THE HUB: %s. %s\nPush it later with:\n  %s",
                one.parcel.name, one.why, one.parcel.command,
            )  # fmt: skip
        if self._waiting_room.is_dir() and not any(self._waiting_room.iterdir()):
            self._waiting_room.rmdir()

    def _opening(self) -> Parcel:
        """Make the repository at once: a wrong token is told before the training, not after."""
        destination = Destination(self._recipe.hub_model_id, private=self._recipe.hub_private)

        def push() -> str:
            tokens = known_tokens(self._api.token)
            with told_without(tokens, f"make {destination.repo_id!r}"):
                prepare(destination, self._api)
            return f"{self._api.endpoint}/{destination.repo_id}"

        return Parcel("the repository", "", push, lambda: None, command="")

    def _put(self, folder: Path, revision: str, message: str, discard: Callable[[], None]) -> None:
        recipe = self._recipe
        destination = Destination(recipe.hub_model_id, revision, private=recipe.hub_private)
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
        command += ["--revision", revision] if revision != MAIN else []
        command += ["--message", message]
        command += ["--private"] if recipe.hub_private else []
        command += [] if recipe.hub_catalogue else ["--without-catalogue"]
        command += ["--training-state"] if with_training_state else []
        self._pusher.put(Parcel(message, revision, push, discard, shlex.join(command)))

    def _tell(self, folder: Path) -> None:
        """Say what is about to be pushed; all of it once, and what looks personal."""
        files = published_files(
            folder,
            with_catalogue=self._recipe.hub_catalogue,
            with_training_state=self._recipe.hub_training_state,
            tokens=known_tokens(self._api.token),
        )
        listed = list_contents(files)
        if self._told_all and folder != self._output:
            listed = listed.splitlines()[-1]
        logger.info("to %s go:\n%s", self._recipe.hub_model_id, listed)
        if not self._told_all and (found := personal_columns(folder)):
            logger.warning("%s", warning_of(found))
        self._told_all = True


@contextmanager
def pushing(recipe: Recipe, tables: Tables, *, is_main: bool) -> Iterator[HubRun | None]:
    """Push what the block saves; at its end wait for the Hub, as long as the recipe says.

    After an error the last state that was saved is pushed all the same; after an interruption by
    hand nothing is waited for.

    Yields:
        None where this process does not push: the recipe says so, or another one does.
    """
    if not (recipe.push_to_hub and is_main):
        yield None
        return
    with tokens_hidden_in_logs(), _no_progress_bars():
        run = HubRun(recipe, tables)
        try:
            yield run
        except Exception:
            run.close(recipe.hub_patience)
            raise
        except BaseException:
            run.close(0)
            raise
        run.close(recipe.hub_patience)


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


def _discard(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


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
