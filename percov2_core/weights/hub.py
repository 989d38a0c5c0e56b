"""Repositories on the Hugging Face Hub: what is cached; fetching and sending, with clear errors.

Nothing is fetched unless it is asked for, by command or by PERCOV2_ALLOW_DOWNLOAD=1, and a server
that does not answer is given up on after a few seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from huggingface_hub import (
    HfApi,
    constants,
    get_hf_file_metadata,
    hf_hub_url,
    is_offline_mode,
    set_client_factory,
    snapshot_download,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)

from percov2_core.errors import WeightsError

ANSWER_S = 5.0  # for each answer; a download itself may take as long as it needs


def cached(repository: str, patterns: list[str]) -> Path | None:
    """The folder of a repository in the local cache, if all that `patterns` name is there."""
    try:
        found = snapshot_download(repository, allow_patterns=patterns, local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return Path(found)


def download(repository: str, patterns: list[str], *, probe: str) -> Path:
    """Fetch the files that `patterns` name into the local cache.
    WeightsError if the repository cannot be had; says what to accept or set.

    Args:
        probe: A file that the repository must have; it is asked for first, because a gated
            repository answers for itself but not for its files.
    """
    with _one_line(repository):
        get_hf_file_metadata(
            hf_hub_url(repository, probe, endpoint=constants.ENDPOINT), timeout=ANSWER_S
        )
        return Path(snapshot_download(repository, allow_patterns=patterns))


def upload(folder: Path, repository: str) -> str:
    """Send a folder to a repository, which is made, private, if it does not exist; -> its address.
    WeightsError if it cannot be sent; says what to set."""
    with _one_line(repository):
        api = HfApi()
        if not api.repo_exists(repository):
            api.create_repo(repository, private=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="PerCoV2 checkpoint"
        )
    return f"{constants.ENDPOINT}/{repository}"


def _client() -> httpx2.Client:
    """huggingface_hub's own client waits for ever, and its calls ask for that by name."""
    return httpx2.Client(follow_redirects=True, event_hooks={"request": [_hurry]})


def _hurry(request: httpx2.Request) -> None:
    given = request.extensions.get("timeout") or {}
    limits = {kind: given.get(kind) or ANSWER_S for kind in ("connect", "read", "write", "pool")}
    request.extensions["timeout"] = limits


@contextmanager
def _one_line(repository: str) -> Iterator[None]:
    """Turn what the Hub's library raises into a `WeightsError`; bugs keep their traceback."""
    try:
        if is_offline_mode():
            raise OfflineModeIsEnabled
        set_client_factory(_client)
        yield
    except (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        httpx2.TransportError,
    ) as error:
        raise WeightsError(_sentence(error, repository)) from error


def _sentence(error: BaseException, repository: str) -> str:
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    name, host = repr(repository), constants.ENDPOINT
    page = f"{host}/{repository}"
    sentences: list[tuple[type[BaseException], str]] = [
        (
            GatedRepoError,
            f"{name} is gated: accept its licence at {page}, then set HF_TOKEN to a token of that "
            "account",
        ),
        (
            RepositoryNotFoundError,
            f"{name} is not at {page}, or not for everyone: check the name, or set HF_TOKEN",
        ),
        (RemoteEntryNotFoundError, f"{name} lacks a file that every such model has: {page}"),
        (OfflineModeIsEnabled, f"{name} cannot be fetched while HF_HUB_OFFLINE is set: unset it"),
        (LocalTokenNotFoundError, f"{name} needs a token: set HF_TOKEN"),
        (HFValidationError, f"{name} is no repository: expected OWNER/NAME"),
        (
            httpx2.TimeoutException,
            f"{name}: {host} did not answer in {ANSWER_S:g} s: check the network or HF_ENDPOINT",
        ),
        (
            httpx2.TransportError,
            f"{name}: {host} cannot be reached: check the network or HF_ENDPOINT",
        ),
    ]
    for kind, sentence in sentences:
        if isinstance(error, kind):
            return sentence
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    hints = {401: "set HF_TOKEN to a valid token", 404: "check HF_ENDPOINT"}
    hints[403] = hints[401]
    return f"{name}: {host} answers {status}: {hints.get(status, 'try again later')}"
