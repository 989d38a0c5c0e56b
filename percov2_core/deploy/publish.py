"""A plan -> a running Space, through huggingface_hub."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import httpx2
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    SpaceHardware,
    get_token,
    is_offline_mode,
    set_client_factory,
)
from huggingface_hub.errors import RepositoryNotFoundError

from percov2_core.deploy.manifest import FILE_NAME
from percov2_core.deploy.plan import Plan
from percov2_core.deploy.refusals import explained
from percov2_core.errors import ConfigError, DeployError

ANSWER_S = 60.0  # for one answer of the Hub, and for one piece of an upload
CONNECT_S = 10.0
POLL_S = (1.0, 10.0)  # between two looks at the Space: at first, and at most
COMMIT_MESSAGE = "Publish from the repository"

# What the Hub itself puts into a new Space.
_THE_HUBS_OWN = {".gitattributes"}
_WAITING = {
    "BUILDING",
    "RUNNING_BUILDING",
    "APP_STARTING",
    "RUNNING_APP_STARTING",
    "SLEEPING",  # the new files wake it
}

Report = Callable[[str], None]


def publish(plan: Plan, *, report: Report) -> str:
    """Create or update the Space, and wait until it runs.

    Args:
        report: Is told each step, in one line.

    Returns:
        The address of the Space's page on the Hub.

    Raises:
        ConfigError: if the name or the hardware is none.
        DeployError: in one line that says what to do.
    """
    check_hardware(plan.hardware)
    api = HfApi(token=_token())
    set_client_factory(_client)
    space = _full_name(plan.space, api)
    with explained(space, api.endpoint):
        there = _files_there(api, space)
        if there is None:
            _create(api, space, plan)
            there = set()
        report(f"uploading {len(plan.files)} files, {plan.total_bytes:,} bytes, to {space}")
        commit = _upload(api, space, plan, there)
        _apply_settings(api, space, plan, report)
        report(f"waiting until {space} runs")
        _wait(api, space, commit, plan.startup_s)
    return f"{api.endpoint}/spaces/{space}"


def check_hardware(name: str) -> None:
    """Refuse hardware that the Hub does not have.

    Raises:
        ConfigError: lists what there is.
    """
    names = [hardware.value for hardware in SpaceHardware]
    if name not in names:
        raise ConfigError(f"hardware: expected one of {', '.join(names)}, got {name!r}")


def _token() -> str:
    if is_offline_mode():
        raise DeployError("network: HF_HUB_OFFLINE is set: unset it to deploy")
    token = get_token()
    if not token:
        raise DeployError(
            "token: none found: run `hf auth login`, or set HF_TOKEN to a token that may write"
        )
    return token


def _client() -> httpx2.Client:
    """huggingface_hub's own client waits for ever."""
    timeout = httpx2.Timeout(ANSWER_S, connect=CONNECT_S)
    return httpx2.Client(follow_redirects=True, timeout=timeout)


def _full_name(space: str, api: HfApi) -> str:
    """Put the owner of the token before a bare name; the first question to the Hub."""
    with explained(space, api.endpoint):
        owner = api.whoami()["name"]
    return space if "/" in space else f"{owner}/{space}"


def _files_there(api: HfApi, space: str) -> set[str] | None:
    """The Space's files if it exists and is one of ours; None if there is none.

    Raises:
        DeployError: if the name is taken by something else: replacing it would destroy that.
    """
    try:
        there = set(api.list_repo_files(space, repo_type="space"))
    except RepositoryNotFoundError:
        return None
    if there - _THE_HUBS_OWN - {"README.md"} and FILE_NAME not in there:
        raise DeployError(
            f"space: {space} exists and holds something else (it has no {FILE_NAME}): "
            "choose another name with --space OWNER/NAME"
        )
    return there


def _create(api: HfApi, space: str, plan: Plan) -> None:
    api.create_repo(
        space,
        repo_type="space",
        space_sdk="gradio",
        space_hardware=plan.hardware,  # type: ignore[arg-type]
        space_sleep_time=plan.sleep_time_s,
        space_variables=[{"key": k, "value": v} for k, v in plan.variables.items()],
    )


def _upload(api: HfApi, space: str, plan: Plan, there: set[str]) -> str:
    """One commit that makes the Space's files those of the plan; -> its id."""
    wanted = {file.path for file in plan.files}
    additions = (CommitOperationAdd(path, plan.root / path) for path in sorted(wanted))
    deletions = (CommitOperationDelete(path) for path in sorted(there - wanted - _THE_HUBS_OWN))
    commit = api.create_commit(
        space, [*additions, *deletions], commit_message=COMMIT_MESSAGE, repo_type="space"
    )
    return commit.oid


def _apply_settings(api: HfApi, space: str, plan: Plan, report: Report) -> None:
    """Set what differs from the plan. Values of secrets are nobody's business here."""
    now = {name: variable.value for name, variable in api.get_space_variables(space).items()}
    for name, value in plan.variables.items():
        if now.get(name) != value:
            api.add_space_variable(space, name, value)
    runtime = api.get_space_runtime(space)
    if (runtime.requested_hardware or runtime.hardware) != plan.hardware:
        report(f"asking for {plan.hardware}")
        api.request_space_hardware(space, plan.hardware, sleep_time=plan.sleep_time_s)  # type: ignore[arg-type]
    elif plan.sleep_time_s not in (None, runtime.sleep_time):
        api.set_space_sleep_time(space, plan.sleep_time_s)
    for line in _missing_secrets(plan, api.get_space_secrets(space)):
        report(f"{line}; set it at {api.endpoint}/spaces/{space}/settings")


def _missing_secrets(plan: Plan, there: Iterable[str]) -> list[str]:
    return [f"no secret {name}: {plan.secrets[name]}" for name in plan.secrets.keys() - set(there)]


def _wait(api: HfApi, space: str, commit: str, startup_s: float) -> None:
    """Return once the uploaded files run.

    Raises:
        DeployError: if they do not, or not in time. Building comes before starting and may take
            as long again.
    """
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
