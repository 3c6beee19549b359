"""What changes a repository other than a commit: making it, naming its commits, its settings."""

import yaml

from .access import commit_of, readable, writable, writer
from .messages import Answer, RefusedError, Request, json_answer
from .repositories import PREFIX, Repository
from .state import HubState


def whoami(_hub: HubState, request: Request) -> Answer:
    account = request.account
    if account is None:
        raise RefusedError(401, "", "Invalid username or password.")
    role = "write" if account.can_write else "read"
    auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
    return json_answer(
        {"type": "user", "name": account.name, "fullname": account.name, "orgs": [], "auth": auth}
    )


def validate_card(_hub: HubState, request: Request) -> Answer:
    """Say whether the metadata of a card is YAML at all."""
    text = request.json().get("content", "")
    errors = []
    try:
        if text.startswith("---\n"):
            yaml.safe_load(text[4:].split("\n---", 1)[0])
    except yaml.YAMLError as error:
        errors.append({"message": str(error)})
    return json_answer({"errors": errors, "warnings": []}, status=400 if errors else 200)


def create(hub: HubState, request: Request) -> Answer:
    values = request.json()
    account = request.account
    if account is None:
        raise RefusedError(401, "", "Invalid username or password.")
    owner = values.get("organization") or account.name
    repo_type = values.get("type") or "model"
    if owner != account.name or not account.can_write:
        raise RefusedError(
            403,
            "",
            f'You don\'t have the rights to create a {repo_type} under the namespace "{owner}"',
        )
    repo_id = f"{owner}/{values['name']}"
    path = f"{PREFIX[repo_type]}{repo_id}"
    url = f"{hub.endpoint}/{path}"
    if path in hub.store.repositories:
        return json_answer(
            {"error": f"You already created this {repo_type} repo", "url": url}, status=409
        )
    private = values.get("visibility") == "private" or bool(values.get("private"))
    made = Repository(repo_id, repo_type, private=private, sdk=values.get("sdk") or "")
    for kind in ("variables", "secrets"):
        made.settings[kind] = {one["key"]: one["value"] for one in values.get(kind) or ()}
    hub.store.repositories[path] = made
    return json_answer({"url": url, "name": repo_id, "id": repo_id})


def delete(hub: HubState, request: Request) -> Answer:
    values = request.json()
    owner = values.get("organization") or writer(request).name
    plural = f"{values.get('type') or 'model'}s"
    found = writable(hub.store, request, plural, f"{owner}/{values['name']}")
    del hub.store.repositories[found.path]
    return json_answer({})


def change_settings(hub: HubState, request: Request, plural: str, repo_id: str) -> Answer:
    repository = writable(hub.store, request, plural, repo_id)
    values = request.json()
    if "visibility" in values or "private" in values:
        repository.private = values.get("visibility") == "private" or bool(values.get("private"))
    return json_answer({"private": repository.private})


def check_access(hub: HubState, request: Request, plural: str, repo_id: str) -> Answer:
    readable(hub.store, request, plural, repo_id)
    return json_answer({})


def branch(hub: HubState, request: Request, plural: str, repo_id: str, name: str) -> Answer:
    repository = writable(hub.store, request, plural, repo_id)
    if request.method == "DELETE":
        if name == "main" or name not in repository.branches:
            raise RefusedError(
                404 if name != "main" else 400, "", f"cannot delete the branch {name}"
            )
        del repository.branches[name]
    elif name in repository.branches:
        raise RefusedError(409, "", "Reference already exists")
    else:
        start = request.json().get("startingPoint") or "main"
        repository.branches[name] = commit_of(repository, start).oid
    return json_answer({})


def tag(hub: HubState, request: Request, plural: str, repo_id: str, name: str) -> Answer:
    """Make a tag at the revision `name`, or delete the tag `name`."""
    repository = writable(hub.store, request, plural, repo_id)
    if request.method == "DELETE":
        if repository.tags.pop(name, None) is None:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {name}")
        return json_answer({})
    wanted = request.json()["tag"]
    if wanted in repository.tags:
        raise RefusedError(409, "", "Tag reference exists already")
    repository.tags[wanted] = commit_of(repository, name).oid
    return json_answer({})


def space_setting(hub: HubState, request: Request, repo_id: str, kind: str) -> Answer:
    """List, set or delete variables and secrets; a secret's value is never told."""
    space = writable(hub.store, request, "spaces", repo_id)
    kept = space.settings.setdefault(kind, {})
    if request.method == "POST":
        kept[request.json()["key"]] = request.json()["value"]
    elif request.method == "DELETE":
        kept.pop(request.json()["key"], None)
    is_secret = kind == "secrets"
    return json_answer({key: {"value": None if is_secret else kept[key]} for key in kept})


def space_runtime(hub: HubState, request: Request, repo_id: str) -> Answer:
    readable(hub.store, request, "spaces", repo_id)
    hardware = {"current": "cpu-basic", "requested": "cpu-basic"}
    return json_answer({"stage": "RUNNING", "hardware": hardware, "gcTimeout": 172800})
