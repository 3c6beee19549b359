"""Push a checkpoint to the Hub: its published files, and nothing else of its folder."""

from pathlib import Path

from huggingface_hub import HfApi

PUBLISHED_FILES = (
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "preprocessor_config.json",
    "vocabularies.safetensors",
    "*.py",
    "catalogue.safetensors",
    "README.md",
    "all_results.json",
    "recipe.yaml",
)
"""Patterns of what may leave the machine. A list of what may go, not of what may not: known users
(`local/`), training state and logs lie in the same folder."""

NEVER_PUBLISHED = ("*/*", ".*")
"""`*` of a Hub pattern also matches `/`, so sub-folders have to be shut out apart."""

_NEEDED = ("config.json", "model.safetensors", "preprocessor_config.json", "README.md")


def push_checkpoint(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    api: HfApi | None = None,
) -> str:
    """Push a checkpoint's published files in one commit, making the repository if need be.

    Args:
        folder: of the checkpoint.
        repo_id: such as `name/repo`.
        private: of a repository that is made; one that exists keeps what it is.
        token: with the right to write; the default is the one of `hf auth login`.
        api: client to use; the default talks to huggingface.co.

    Returns:
        The commit's id, to pin with `revision=`.

    Raises:
        FileNotFoundError: the folder lacks a file that a checkpoint needs.
    """
    folder = Path(folder)
    missing = [
        name
        for name in _NEEDED
        if not (folder / name).is_file()
        and not (name == "model.safetensors" and (folder / f"{name}.index.json").is_file())
    ]
    if missing:
        raise FileNotFoundError(
            f"cannot push {str(folder)!r}: it lacks {', '.join(missing)}; "
            "give the output_dir of a finished run"
        )
    api = api or HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        commit_message="Push an FT-Mamba checkpoint",
        allow_patterns=list(PUBLISHED_FILES),
        ignore_patterns=list(NEVER_PUBLISHED),
    )
    return str(commit.oid)
