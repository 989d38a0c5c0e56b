"""Repositories on the Hugging Face Hub: what is cached; fetching and sending, with clear errors.

Nothing is fetched unless it is asked for, by command or by PERCOV2_ALLOW_DOWNLOAD=1, and a server
that does not answer is given up on after a few seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import huggingface_hub as hf
from huggingface_hub import constants, errors, set_client_factory

from percov2_core.errors import WeightsError

ANSWER_S = 5.0  # for each answer; a download itself may take as long as it needs


def cached(repository: str, patterns: list[str]) -> Path | None:
    """The folder of a repository in the local cache, if all that `patterns` name is there."""
    try:
        found = hf.snapshot_download(repository, allow_patterns=patterns, local_files_only=True)
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        return None
    return Path(found)


def download(repository: str, patterns: list[str], *, probe: str) -> Path:
    """Fetch the files that `patterns` name into the local cache.
    WeightsError if the repository cannot be had; says what to accept or set. `probe` is a file that
    it must have, asked for first: a gated one answers for itself but not for its files."""
    with _one_line(repository):
        address = hf.hf_hub_url(repository, probe, endpoint=constants.ENDPOINT)
        hf.get_hf_file_metadata(address, timeout=ANSWER_S)
        return Path(hf.snapshot_download(repository, allow_patterns=patterns))


def upload(folder: Path, repository: str) -> str:
    """Send a folder to a repository, which is made, private, if it does not exist; -> its address.
    WeightsError if it cannot be sent; says what to set."""
    with _one_line(repository):
        api = hf.HfApi()
        if not api.repo_exists(repository):
            api.create_repo(repository, private=True)
        message = "PerCoV2 checkpoint"
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
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
        if hf.is_offline_mode():
            raise errors.OfflineModeIsEnabled
        set_client_factory(_client)
        yield
    except tuple(_SENTENCES) as error:
        raise WeightsError(_sentence(error, repository)) from error


# What each of them means, the first that fits.
_SENTENCES: dict[type[BaseException], str] = {
    errors.GatedRepoError: "{name!r} is gated: accept its licence at {host}/{name}, then set "
    "HF_TOKEN to a token of that account",
    errors.RepositoryNotFoundError: "{name!r} is not at {host}/{name}, or not for everyone: check "
    "the name, or set HF_TOKEN",
    errors.RemoteEntryNotFoundError: "{name!r} lacks a file that every such model has: "
    "{host}/{name}",
    errors.OfflineModeIsEnabled: "{name!r} cannot be fetched while HF_HUB_OFFLINE is set: unset it",
    errors.LocalTokenNotFoundError: "{name!r} needs a token: set HF_TOKEN",
    errors.HFValidationError: "{name!r} is no repository: expected OWNER/NAME",
    httpx2.TimeoutException: "{name!r}: {host} did not answer in {seconds:g} s: check the network "
    "or HF_ENDPOINT",
    httpx2.TransportError: "{name!r}: {host} cannot be reached: check the network or HF_ENDPOINT",
    errors.LocalEntryNotFoundError: "{name!r} is not in the Hub's cache",
    errors.HfHubHTTPError: "{name!r}: {host} answers {status}: {hint}",
}


def _sentence(error: BaseException, repository: str) -> str:
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
    token = "set HF_TOKEN to a valid token"
    hint = {401: token, 403: token, 404: "check HF_ENDPOINT"}.get(status, "try again later")
    told = {"name": repository, "host": constants.ENDPOINT, "seconds": ANSWER_S}
    fitting = (said for kind, said in _SENTENCES.items() if isinstance(error, kind))
    sentence = next(fitting, _SENTENCES[errors.HfHubHTTPError])
    return sentence.format(**told, status=status, hint=hint)
