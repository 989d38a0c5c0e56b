"""What the Hub or the network refuses -> one line that says what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import httpx2
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from percov2_core.errors import DeployError, PerCoError

_LATER = "try again in a few minutes"


@contextlib.contextmanager
def explained(space: str, endpoint: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into a `DeployError`; bugs keep their traceback.

    Args:
        space: What the error is about.
        endpoint: Address of the Hub.
    """
    try:
        yield
    except PerCoError:
        raise
    except Exception as error:
        found = _known(error)
        if found is None:
            raise
        raise DeployError(_sentence(found, space, endpoint)) from error


def _known(error: BaseException | None) -> Exception | None:
    """The first of our kinds among an error and its causes: uploads wrap theirs."""
    while error is not None:
        if isinstance(error, HfHubHTTPError | httpx2.TransportError | ConnectionError):
            return error
        if isinstance(error, ValueError) and "metadata in README.md" in str(error):
            return error
        error = error.__cause__
    return None


def _sentence(error: Exception, space: str, endpoint: str) -> str:
    if isinstance(error, httpx2.TransportError | ConnectionError):
        return (
            f"network: no answer from {endpoint} ({_one_line(error)}): "
            "check the connection, then run it again"
        )
    if not isinstance(error, HfHubHTTPError):
        return f"README.md: {endpoint} refuses its front matter: {_one_line(error)}"
    settings = f"{endpoint}/settings"
    rights = (
        f"space: this token may not write to {space}: use one that may "
        f"({settings}/tokens), or name a Space of your own with --space OWNER/NAME"
    )
    # Of a Space that one may not see, the Hub says that there is none.
    if isinstance(error, RepositoryNotFoundError):
        return rights
    said = error.server_message or _one_line(error)
    by_status = {
        401: f"token: {endpoint} does not accept it: run `hf auth login`, or set HF_TOKEN to one "
        "that may write",
        402: f"hardware: the host wants it paid for: {said}: see {settings}/billing",
        403: rights,
        409: f"space: the name {space} is taken: choose another with --space OWNER/NAME",
        429: f"network: {endpoint} has had too many questions: {_LATER}",
    }
    status = error.response.status_code
    later = f": {_LATER}" if status >= 500 else ""
    return by_status.get(status, f"space: {endpoint} answers {status}: {said}{later}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
