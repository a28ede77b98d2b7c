"""Upload an output or a run to the Hub, in one commit."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plastic_core.files import FormatError
from plastic_runtime import Track, untracked

from plastic_export.folder.card_file import CARD, is_own_card
from plastic_export.hub.model_card import REPOSITORY
from plastic_export.hub.refusals import told_in_a_line
from plastic_export.hub.uploads import left_out, uploads

_OF_THE_HUB = {".gitattributes"}  # what a new repository holds


@dataclass(frozen=True)
class Pushed:
    """What was uploaded, or would be.

    Attributes:
        repository: Its id, ``owner/name``; as it was given where nothing was uploaded.
        url: Where it is; None where nothing was uploaded.
        files: Bytes of every file, by its place.
        left: What else is in the folder and stays there.

    Examples:
        >>> pushed = push("FACTORED", "me/small", dry_run=True)
        >>> pushed.url is None, "sleep.safetensors" in pushed.left
        (True, True)
    """

    repository: str
    url: str | None
    files: dict[str, int]
    left: tuple[str, ...]


def push(
    folder: str | os.PathLike[str],
    repository: str,
    *,
    public: bool = False,
    update: bool = False,
    with_sleep: bool = False,
    dry_run: bool = False,
    track: Track = untracked,
) -> Pushed:
    """Upload what ``compress``, ``heal`` or ``train`` wrote to a repository of the Hub.

    Files go up one by one, and one commit at the end shows them all. If the connection breaks, the
    same call goes on: what the Hub has is not sent again. Only files that this package wrote are
    taken, the model card too, in which the name of the repository is filled in.

    Args:
        folder: The folder.
        repository: Id ``owner/name``; without an owner, that of the token.
        public: Whether anybody may see a new repository. One that is there stays as it is.
        update: Whether a repository that holds files already gets another commit.
        with_sleep: Whether what ``restore`` needs is uploaded as well, or the states of a run.
        dry_run: Only say what would be uploaded. Nothing is asked of the Hub.
        track: Wraps the loop over the files.

    Raises:
        FormatError: If the folder is not one of ours or not finished; if the repository holds
            files and ``update`` is not set, has no such name, or the token is missing or may not
            write there.
        ConnectionError: If the connection breaks.
        OSError: If a file cannot be read.

    Examples:
        >>> push("FACTORED", "me/small", dry_run=True).files["plastic_model.py"] > 0
        True
    """
    place = Path(folder)
    files = uploads(place, with_sleep=with_sleep)
    sizes = {name: path.stat().st_size for name, path in files.items()}
    left = tuple(left_out(place, files))
    with told_in_a_line(repository):
        _check_name(repository)
        if dry_run:
            return Pushed(repository, None, sizes, left)
        id_, url = _opened(repository, public=public, update=update)
        _upload(id_, files, track)
    return Pushed(id_, url, sizes, left)


def _check_name(repository: str) -> None:
    from huggingface_hub.utils._validators import validate_repo_id

    validate_repo_id(repository)


def _opened(repository: str, *, public: bool, update: bool) -> tuple[str, str]:
    """Return id and address of a repository that is new, empty, or to be updated."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import LocalTokenNotFoundError

    if get_token() is None:
        raise LocalTokenNotFoundError
    api = HfApi()
    made: Any = api.create_repo(repository, private=not public, exist_ok=True)
    there = set(api.list_repo_files(made.repo_id)) - _OF_THE_HUB
    if there and not update:
        reason = f"the repository is there and holds {len(there)} files"
        remedy = "choose another name, or add a commit to it with --update"
        raise FormatError.about(made.repo_id, reason, remedy)
    return made.repo_id, str(made)


def _upload(repository: str, files: dict[str, Path], track: Track) -> None:
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    added = [CommitOperationAdd(name, _content(path, repository)) for name, path in files.items()]
    for operation in track(added, "uploading"):
        api.preupload_lfs_files(repository, [operation])
    api.create_commit(repository, added, commit_message="Upload by plastic-export")


def _content(path: Path, repository: str) -> str | bytes:
    """Return a file by its path, but a card of ours with the name of the repository in it."""
    if path.name == CARD and is_own_card(path):
        return path.read_text().replace(REPOSITORY, repository).encode()
    return str(path)
