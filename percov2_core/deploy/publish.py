"""A plan -> a running Space, through huggingface_hub; each refusal becomes one line to act on."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    get_token,
    is_offline_mode,
    set_client_factory,
)
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils.tqdm import disable_progress_bars

from percov2_core.deploy.spacefile import FILE_NAME, README, Plan
from percov2_core.errors import DeployError

ANSWER_S = 60.0  # for one answer of the Hub, and for one piece of an upload
CONNECT_S = 10.0
POLL_S = (1.0, 10.0)  # between two looks at the Space: at first, and at most

# What the Hub itself puts into a new Space.
_THE_HUBS_OWN = {".gitattributes"}
# The new files wake a Space that sleeps.
_WAITING = ("BUILDING", "RUNNING_BUILDING", "APP_STARTING", "RUNNING_APP_STARTING", "SLEEPING")
_LATER = "try again in a few minutes"

Report = Callable[[str], None]


def publish(plan: Plan, *, report: Report) -> str:
    """Create or update the Space, and wait until it runs; -> the address of its page on the Hub.
    `report` is told each step, in one line. DeployError in one line that says what to do."""
    if is_offline_mode():
        raise DeployError("network: HF_HUB_OFFLINE is set: unset it to deploy")
    if not (token := get_token()):
        raise DeployError(
            "token: none found: run `hf auth login`, or set HF_TOKEN to a token that may write"
        )
    api = HfApi(token=token)
    set_client_factory(_client)
    # It recommends another protocol for large folders, which knows no time-outs of ours.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    disable_progress_bars()
    with _explained(plan.space, api.endpoint):
        owner = api.whoami()["name"]
    space = plan.space if "/" in plan.space else f"{owner}/{plan.space}"
    with _explained(space, api.endpoint):
        there = _find_or_create(api, space, plan)
        report(f"uploading {len(plan.files)} files, {plan.total_bytes:,} bytes, to {space}")
        # One commit that makes the Space's files those of the plan.
        new = [CommitOperationAdd(path, plan.root / path) for path in plan.files]
        gone = [CommitOperationDelete(path) for path in sorted(there - plan.files.keys())]
        said = "Publish from the repository"
        done = api.create_commit(space, [*new, *gone], commit_message=said, repo_type="space")
        _apply_settings(api, space, plan, report)
        report(f"waiting until {space} runs")
        _wait(api, space, done.oid, plan.manifest.page.startup_s)
    return f"{api.endpoint}/spaces/{space}"


def _client() -> httpx2.Client:
    """huggingface_hub's own client waits for ever."""
    timeout = httpx2.Timeout(ANSWER_S, connect=CONNECT_S)
    return httpx2.Client(follow_redirects=True, timeout=timeout)


def _find_or_create(api: HfApi, space: str, plan: Plan) -> set[str]:
    """-> its files. Make the Space if there is none; nothing else of that name is destroyed."""
    try:
        there = set(api.list_repo_files(space, repo_type="space")) - _THE_HUBS_OWN
    except RepositoryNotFoundError:
        variables = plan.manifest.settings.variables.items()
        options: dict[str, Any] = {
            "space_hardware": plan.hardware,
            "space_sleep_time": plan.sleep_time_s,
            "space_variables": [{"key": name, "value": value} for name, value in variables],
        }
        api.create_repo(space, repo_type="space", space_sdk="gradio", **options)
        return set()
    if there - {README} and FILE_NAME not in there:
        raise DeployError(
            f"space: {space} exists and holds something else (it has no {FILE_NAME}): "
            "choose another name with --space OWNER/NAME"
        )
    return there


def _apply_settings(api: HfApi, space: str, plan: Plan, report: Report) -> None:
    """Set what differs from the plan. Values of secrets are nobody's business here."""
    now = {name: variable.value for name, variable in api.get_space_variables(space).items()}
    for name, value in plan.manifest.settings.variables.items():
        if now.get(name) != value:
            api.add_space_variable(space, name, value)
    runtime = api.get_space_runtime(space)
    if (runtime.requested_hardware or runtime.hardware) != plan.hardware:
        report(f"asking for {plan.hardware}")
        api.request_space_hardware(space, plan.hardware, sleep_time=plan.sleep_time_s)  # type: ignore[arg-type]
    elif plan.sleep_time_s not in (None, runtime.sleep_time):
        api.set_space_sleep_time(space, plan.sleep_time_s)
    for name in plan.manifest.settings.secrets.keys() - set(api.get_space_secrets(space)):
        place = f"{api.endpoint}/spaces/{space}/settings"
        report(f"no secret {name}: {plan.manifest.settings.secrets[name]}; set it at {place}")


def _wait(api: HfApi, space: str, commit: str, startup_s: float) -> None:
    """Return once the uploaded files run."""
    # Building comes before starting and may take as long again.
    pause_s, deadline = POLL_S[0], time.monotonic() + 2 * startup_s
    logs = f"read the log at {api.endpoint}/spaces/{space}?logs=container"
    while True:
        runtime = api.get_space_runtime(space)
        # Right after an upload the Hub may still speak of what ran before.
        current = runtime.raw.get("sha") in (None, commit)
        if current and runtime.stage == "RUNNING":
            return
        if current and runtime.stage not in _WAITING:
            why = runtime.raw.get("errorMessage") or "no reason given"
            raise DeployError(f"space: {space} is in stage {runtime.stage}: {why}: {logs}")
        if time.monotonic() > deadline:
            raise DeployError(f"space: {space} is still in stage {runtime.stage}: {logs}")
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, POLL_S[1])


@contextlib.contextmanager
def _explained(space: str, hub: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into a `DeployError`; bugs keep their traceback."""
    try:
        yield
    except Exception as error:
        found: BaseException | None = error
        while found is not None:  # uploads wrap their errors
            if sentence := _sentence(found, space, hub):
                raise DeployError(sentence) from error
            found = found.__cause__
        raise


def _sentence(error: BaseException, space: str, hub: str) -> str | None:
    """What the Hub at `hub` refused and what to do; None for an error of another kind."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, httpx2.TransportError | ConnectionError):
        return f"network: no answer from {hub} ({text}): check the connection, then run it again"
    if isinstance(error, ValueError) and "metadata in README.md" in text:
        return f"README.md: {hub} refuses its front matter: {text}"
    if not isinstance(error, HfHubHTTPError):
        return None
    # Of a Space that one may not see, the Hub says that there is none.
    missing = isinstance(error, RepositoryNotFoundError)
    status = 403 if missing else error.response.status_code
    said = error.server_message or text
    by_status = {
        401: f"token: {hub} does not accept it: run `hf auth login`, or set HF_TOKEN to one "
        "that may write",
        402: f"hardware: the host wants it paid for: {said}: see {hub}/settings/billing",
        403: f"space: this token may not write to {space}: use one that may "
        f"({hub}/settings/tokens), or name a Space of your own with --space OWNER/NAME",
        409: f"space: the name {space} is taken: choose another with --space OWNER/NAME",
        429: f"network: {hub} has had too many questions: {_LATER}",
    }
    later = f": {_LATER}" if status >= 500 else ""
    return by_status.get(status, f"space: {hub} answers {status}: {said}{later}")
