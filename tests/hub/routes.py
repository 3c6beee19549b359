"""Which function answers which request."""

import re
from collections.abc import Callable
from urllib.parse import unquote

from . import changing, commits, downloads, listing
from .messages import Answer, RefusedError, Request, json_answer
from .state import HubState

Respond = Callable[..., Answer]

_REPO = r"/api/(models|datasets|spaces)/([^/]+/[^/]+)"
_FILES = r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)"
_SPACE = r"/api/spaces/([^/]+/[^/]+)"

HUB_ROUTES: tuple[tuple[str, str, Respond], ...] = (
    ("GET", r"/api/whoami-v2", changing.whoami),
    ("POST", r"/api/validate-yaml", changing.validate_card),
    ("POST", r"/api/repos/create", changing.create),
    ("DELETE", r"/api/repos/delete", changing.delete),
    ("GET", r"/api/agent-harnesses", lambda *_: json_answer({}, status=404)),
    ("GET", r"/api/(models|datasets|spaces)", listing.list_repositories),
    ("GET", rf"{_REPO}/tree/([^/]+)(?:/(.+))?", listing.tree),
    ("POST", rf"{_REPO}/paths-info/([^/]+)", listing.paths_info),
    ("GET", rf"{_REPO}/commits/([^/]+)", listing.commits),
    ("GET", rf"{_REPO}/refs", listing.references),
    ("GET", rf"{_REPO}/auth-check", changing.check_access),
    ("PUT", rf"{_REPO}/settings", changing.change_settings),
    ("POST DELETE", rf"{_REPO}/branch/([^/]+)", changing.branch),
    ("POST DELETE", rf"{_REPO}/tag/([^/]+)", changing.tag),
    ("POST", rf"{_REPO}/preupload/([^/]+)", commits.preupload),
    ("POST", rf"{_REPO}/commit/([^/]+)", commits.commit),
    ("GET POST", rf"{_REPO}/discussions", commits.discussions),
    ("GET", rf"{_REPO}/discussions/(\d+)", commits.discussion),
    ("POST", rf"{_REPO}/discussions/(\d+)/merge", commits.merge),
    ("GET POST DELETE", rf"{_SPACE}/(variables|secrets)", changing.space_setting),
    ("GET", rf"{_SPACE}/runtime", changing.space_runtime),
    ("GET", rf"{_REPO}(?:/revision/([^/]+))?", listing.describe),
    ("POST", rf"{_FILES}\.git/info/lfs/objects/batch", commits.lfs_batch),
    ("POST", r"/_verify", commits.verify),
    ("GET HEAD", rf"{_FILES}/(?:resolve|raw)/([^/]+)/(.+)", downloads.resolve),
)
STORAGE_ROUTES: tuple[tuple[str, str, Respond], ...] = (
    ("PUT", r"/_upload/([0-9a-f]{64})", commits.upload),
    ("GET HEAD", r"/_files/([0-9a-f]{64})/(.+)", downloads.stored),
)


def respond(hub: HubState, request: Request) -> Answer | None:
    """Return the answer to a request, None where no route is known."""
    routes = HUB_ROUTES if request.origin == "hub" else STORAGE_ROUTES
    for methods, pattern, function in routes:
        match = re.fullmatch(pattern, request.path)
        if match and request.method in methods.split():
            groups = [group and unquote(group) for group in match.groups()]
            return _answer(hub, request, function, groups)
    return None


def _answer(hub: HubState, request: Request, function: Respond, groups: list[str | None]) -> Answer:
    sent = request.headers.get("authorization")
    try:
        if sent and request.origin == "hub" and request.account is None:
            raise RefusedError(401, "", "Invalid credentials in Authorization header")
        with hub.lock:
            return function(hub, request, *groups)
    except RefusedError as refused:
        return refused.answer
