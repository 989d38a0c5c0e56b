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

ANSWER_S = 5.0  # for the first answer; a download itself may take as long as it needs


def cached(repository: str, patterns: list[str]) -> Path | None:
    """The folder of a repository in the local cache, if all that `patterns` name is there."""
    try:
        found = snapshot_download(repository, allow_patterns=patterns, local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return Path(found)


def download(repository: str, patterns: list[str], *, probe: str) -> Path:
    """Fetch the files that `patterns` name into the local cache.

    Args:
        probe: A file that the repository must have; it is asked for first, because a gated
            repository answers for itself but not for its files.

    Raises:
        WeightsError: if the repository cannot be had; says what to accept or set.
    """
    with _one_line(repository):
        HfApi().model_info(repository, timeout=ANSWER_S)
        get_hf_file_metadata(
            hf_hub_url(repository, probe, endpoint=constants.ENDPOINT), timeout=ANSWER_S
        )
        return Path(snapshot_download(repository, allow_patterns=patterns))


def upload(folder: Path, repository: str) -> str:
    """Send a folder to a repository, which is made, private, if it does not exist; -> its address.

    Raises:
        WeightsError: if it cannot be sent; says what to set.
    """
    with _one_line(repository):
        api = HfApi()
        if not api.repo_exists(repository):
            api.create_repo(repository, private=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="PerCoV2 checkpoint"
        )
    return f"{constants.ENDPOINT}/{repository}"


@contextmanager
def _one_line(repository: str) -> Iterator[None]:
    """Translate what the Hub's library raises."""
    name, page = repr(repository), f"{constants.ENDPOINT}/{repository}"
    try:
        yield
    except GatedRepoError as error:
        raise WeightsError(
            f"{name} is gated: accept its licence at {page}, then set HF_TOKEN to a token of that "
            "account"
        ) from error
    except RepositoryNotFoundError as error:
        raise WeightsError(
            f"{name} is not at {page}, or not for everyone: check the name, or set HF_TOKEN"
        ) from error
    except RemoteEntryNotFoundError as error:
        raise WeightsError(f"{name} lacks a file that every such model has: {page}") from error
    except OfflineModeIsEnabled as error:
        raise WeightsError(
            f"{name} cannot be fetched while HF_HUB_OFFLINE is set: unset it"
        ) from error
    except LocalTokenNotFoundError as error:
        raise WeightsError(f"{name} needs a token: set HF_TOKEN") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = "set HF_TOKEN to a valid token" if status in (401, 403) else "try again later"
        raise WeightsError(f"{name}: {constants.ENDPOINT} answers {status}: {hint}") from error
    except httpx2.TimeoutException as error:
        raise WeightsError(
            f"{name}: {constants.ENDPOINT} did not answer in {ANSWER_S:g} s: check the network or "
            "HF_ENDPOINT"
        ) from error
    except httpx2.TransportError as error:
        raise WeightsError(
            f"{name}: {constants.ENDPOINT} cannot be reached: check the network or HF_ENDPOINT"
        ) from error
    except HFValidationError as error:
        raise WeightsError(f"{name} is no repository: expected OWNER/NAME") from error
