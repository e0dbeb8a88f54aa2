"""Upload of an exported model to a model hub; needs the extra `hub`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sem_jax.data import DataError
from sem_jax.sharing.folder import FILES


def push(folder: str | Path, repo: str, api: Any = None) -> str:
    """Uploads the files of an exported model; a repository that does not exist is made, and is private.

    Args:
      folder: of `sem-jax export`.
      repo: USER/NAME.
      api: what talks to the hub; None: `huggingface_hub.HfApi()`, with the token that its login has stored.

    Returns:
      The address of the upload.

    Raises:
      DataError: the library is missing, or the hub refuses or does not answer.
    """
    try:
        api = api or _api()
        api.create_repo(repo, private=True, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo, folder_path=str(folder), allow_patterns=list(FILES), commit_message="Export of sem_jax"
        )
    except Exception as error:  # the library raises its own errors, those of its transport, and plain ones
        if isinstance(error, DataError):
            raise
        reason = " ".join(str(error).split())
        raise DataError(
            f"{repo} has not been uploaded ({type(error).__name__}: {reason:.300}); {folder} is complete: check name, "
            "login and network, and upload it again"
        ) from error
    return str(done)


def require_library() -> None:
    """Raises DataError where the library of the hub is missing."""
    _api()


def _api() -> Any:
    try:
        import huggingface_hub
    except ModuleNotFoundError:
        raise DataError("--push needs the library of the hub; install it with pip install 'sem-jax[hub]'") from None
    return huggingface_hub.HfApi()
