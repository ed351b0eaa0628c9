"""Where the Hugging Face cache keeps a repository's files. Must not know: what is in them, the network."""

from pathlib import Path

from ..paths import expanded


def cache_folder() -> Path:
    from huggingface_hub import constants  # slow, and few calls need it

    return expanded(constants.HF_HUB_CACHE)


def storage_folder(cache: Path, repo: str) -> Path:
    """Where everything of `repo` is, all its revisions."""
    return cache / f"models--{repo.replace('/', '--')}"


def cached(cache: Path, repo: str, revision: str) -> Path | None:
    """The snapshot of `repo` in the cache, whole or not."""
    storage = storage_folder(cache, repo)
    reference = storage / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    folder = storage / "snapshots" / commit
    return folder if folder.is_dir() else None
