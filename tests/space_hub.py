"""A stand-in for the Hub's HTTP API, as far as publishing a Space needs it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.hub import TOKEN, Handler, serving

OWNER = "somebody"
LARGE_BYTES = 100_000  # larger files go through the large-file storage


@dataclass
class Space:
    """What the Hub keeps of one Space."""

    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b"* text\n"})
    hardware: str = "cpu-basic"
    sleep_time: int | None = None
    variables: dict[str, str] = field(default_factory=dict)
    commit: str = "0" * 40
    stale: int = 0  # answers about the runtime that still speak of what ran before
    stages: list[str] = field(default_factory=lambda: ["BUILDING", "APP_STARTING", "RUNNING"])
    message: str | None = None


@dataclass
class Hub:
    """The stand-in's state; `refuse` maps a path to the status that it answers with."""

    address: str
    spaces: dict[str, Space] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    refuse: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    foreign: set[str] = field(default_factory=set)  # names that are taken by what one may not see


class Refused(Exception):
    """Its arguments are the status and the message of the answer."""


@contextmanager
def stand_in() -> Iterator[Hub]:
    """Serve an empty Hub on a free port."""
    with serving(_Handler, Hub) as hub:
        yield hub


class _Handler(Handler):
    hub: Hub

    def _serve(self) -> None:
        path = self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.asked.append(f"{self.command} {path}")
        try:
            answer = self._answer(path, body)
        except Refused as refused:
            status, message = refused.args
            return self._send(status, {"error": message}, message)
        return self._send(200, answer)

    do_GET = do_POST = do_PUT = do_DELETE = _serve

    def _answer(self, path: str, body: bytes) -> Any:
        for part, status in self.hub.refuse.items():
            if part in path:
                raise Refused(status, f"refused with {status}")
        # The address of a large file is signed and needs no token.
        if path.startswith("/large/"):
            self.hub.large[path.removeprefix("/large/")] = body
            return {}
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refused(401, "Invalid credentials in Authorization header")
        for method, pattern, answer in _ROUTES:
            found = re.fullmatch(pattern, path)
            if found and method == self.command:
                return answer(self.hub, body, *found.groups())
        raise Refused(404, f"no such page: {self.command} {path}")

    def _send(self, status: int, answer: Any, message: str = "") -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Error-Message", message)
        if message == "Repository not found":
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        self.wfile.write(data)


def _find(hub: Hub, name: str) -> Space:
    if name not in hub.spaces:
        raise Refused(404, "Repository not found")
    return hub.spaces[name]


def _create(hub: Hub, body: bytes) -> Any:
    wanted = json.loads(body)
    assert (wanted["type"], wanted["sdk"]) == ("space", "gradio")
    name = f"{wanted['organization'] or OWNER}/{wanted['name']}"
    if wanted["organization"] not in (None, OWNER):
        raise Refused(403, "You don't have the rights to create a Space under this namespace")
    if name in hub.spaces or name in hub.foreign:
        raise Refused(409, "You already created this space repo")
    hub.spaces[name] = Space(
        hardware=wanted["hardware"],
        sleep_time=wanted.get("sleepTimeSeconds"),
        variables={each["key"]: each["value"] for each in wanted["variables"]},
    )
    return {"url": f"{hub.address}/spaces/{name}", "name": name}


def _tree(hub: Hub, body: bytes, name: str) -> Any:
    files = _find(hub, name).files.items()
    return [
        {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        for path, data in files
    ]


def _preupload(hub: Hub, body: bytes, name: str) -> Any:
    _find(hub, name)
    files = json.loads(body)["files"]
    for file in files:
        file["uploadMode"] = "lfs" if file["size"] > LARGE_BYTES else "regular"
        file["shouldIgnore"] = False
    return {"files": files}


def _batch(hub: Hub, body: bytes, name: str) -> Any:
    objects = []
    for wanted in json.loads(body)["objects"]:
        upload = {"upload": {"href": f"{hub.address}/large/{wanted['oid']}"}}
        known = wanted["oid"] in hub.large
        objects.append({**wanted, **({} if known else {"actions": upload})})
    return {"transfer": "basic", "objects": objects}


def _commit(hub: Hub, body: bytes, name: str) -> Any:
    space = _find(hub, name)
    for line in body.splitlines():
        item = json.loads(line)
        value = item["value"]
        if item["key"] == "file":
            space.files[value["path"]] = base64.b64decode(value["content"])
        elif item["key"] == "lfsFile":
            data = hub.large[value["oid"]]
            assert (hashlib.sha256(data).hexdigest(), len(data)) == (value["oid"], value["size"])
            space.files[value["path"]] = data
        elif item["key"] == "deletedFile":
            del space.files[value["path"]]
    space.commit = hashlib.sha1(body).hexdigest()
    address = f"{hub.address}/spaces/{name}/commit/{space.commit}"
    return {"commitUrl": address, "commitOid": space.commit}


def _variables(hub: Hub, body: bytes, name: str) -> Any:
    space = _find(hub, name)
    if body:
        wanted = json.loads(body)
        space.variables[wanted["key"]] = wanted["value"]
    return {key: {"key": key, "value": value} for key, value in space.variables.items()}


def _hardware(hub: Hub, body: bytes, name: str) -> Any:
    wanted = json.loads(body)
    space = _find(hub, name)
    space.hardware, space.sleep_time = wanted["flavor"], wanted.get("sleepTimeSeconds")
    return _runtime(hub, b"", name)


def _runtime(hub: Hub, body: bytes, name: str) -> Any:
    space = _find(hub, name)
    space.stale -= 1
    stale = space.stale >= 0
    stage = space.stages.pop(0) if len(space.stages) > 1 and not stale else space.stages[0]
    return {
        "stage": "RUNNING" if stale else stage,
        "hardware": {"current": space.hardware, "requested": space.hardware},
        "gcTimeout": space.sleep_time,
        "sha": "0" * 40 if stale else space.commit,
        "errorMessage": space.message,
    }


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", "/api/whoami-v2", lambda hub, body: {"type": "user", "name": OWNER, "orgs": []}),
    ("POST", "/api/repos/create", _create),
    ("POST", "/api/validate-yaml", lambda hub, body: {"errors": [], "warnings": []}),
    ("GET", f"/api/spaces/{_NAME}/tree/main", _tree),
    ("POST", f"/api/spaces/{_NAME}/preupload/main", _preupload),
    ("POST", f"/spaces/{_NAME}.git/info/lfs/objects/batch", _batch),
    ("POST", f"/api/spaces/{_NAME}/commit/main", _commit),
    ("GET", f"/api/spaces/{_NAME}/variables", _variables),
    ("POST", f"/api/spaces/{_NAME}/variables", _variables),
    ("GET", f"/api/spaces/{_NAME}/secrets", lambda hub, body, name: {}),
    ("POST", f"/api/spaces/{_NAME}/hardware", _hardware),
    ("GET", f"/api/spaces/{_NAME}/runtime", _runtime),
]
