"""A stand-in for the Hub's HTTP API on this machine, as far as models and Spaces need it."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.ui_server import Quiet, listening

OWNER = "somebody"
TOKEN = "hf_standin"
COMMIT = "c" * 40
LARGE_BYTES = 100_000  # larger files of a Space go through the large-file storage
Files = dict[str, bytes]


@dataclass
class Space:
    """What the Hub keeps of one Space."""

    files: Files = field(default_factory=lambda: {".gitattributes": b"* text\n"})
    hardware: str = "cpu-basic"
    sleep_time: int | None = None
    variables: dict[str, str] = field(default_factory=dict)
    commit: str = "0" * 40
    stale: int = 0  # answers about the runtime that still speak of what ran before
    stages: list[str] = field(default_factory=lambda: ["BUILDING", "APP_STARTING", "RUNNING"])
    message: str | None = None


@dataclass
class Hub:
    address: str
    models: dict[str, Files] = field(default_factory=dict)
    spaces: dict[str, Space] = field(default_factory=dict)
    large: Files = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)  # models whose files need TOKEN
    foreign: set[str] = field(default_factory=set)  # names taken by what one may not see
    refuse: dict[str, int] = field(default_factory=dict)  # part of a path -> status of its answer
    silent_from: int | None = None  # number of requests after which none is answered any more
    asked: list[str] = field(default_factory=list)  # method and path of every request
    over: threading.Event = field(default_factory=threading.Event)


class Refused(Exception):
    """Its arguments are the status of the answer, its message, and the Hub's code for it."""


def files_of(folder):
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@contextmanager
def stand_in():
    hub = Hub("")
    with listening(_Handler, hub=hub) as hub.address:
        yield hub
        hub.over.set()


class _Handler(Quiet):
    protocol_version = "HTTP/1.1"

    def _serve(self):
        hub = self.server.hub
        path = self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub.asked.append(f"{self.command} {path}")
        if hub.silent_from is not None and len(hub.asked) > hub.silent_from:
            hub.over.wait(60)
            self.close_connection = True
            return
        status, headers = 200, {}
        try:
            answer = self._answer(hub, path, body)
        except Refused as refused:
            status, message, code = (*refused.args, "")[:3]
            answer, headers = {"error": message}, {"X-Error-Message": message, "X-Error-Code": code}
        if isinstance(answer, bytes):
            headers = {"ETag": f'"{hashlib.sha1(answer).hexdigest()}"', "X-Repo-Commit": COMMIT}
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _answer(self, hub, path, body):
        for part, status in hub.refuse.items():
            if part in path:
                raise Refused(status, f"refused with {status}")
        # The address of a large file is signed and needs no token.
        if path.startswith("/large/"):
            hub.large[path.removeprefix("/large/")] = body
            return {}
        sent = self.headers.get("Authorization")
        public = self.command in ("GET", "HEAD") and "/spaces/" not in path and "/who" not in path
        if sent != f"Bearer {TOKEN}" and (sent or not public):
            raise Refused(401, "Invalid credentials in Authorization header")
        if found := re.fullmatch(f"/{_NAME}/resolve/[^/]+/(.+)", path):
            if found[1] in hub.gated and not sent:
                raise Refused(401, "", "GatedRepo")
            if found[2] not in _files(hub, found[1]):
                raise Refused(404, "", "EntryNotFound")
            return _files(hub, found[1])[found[2]]
        for method, pattern, answer in _ROUTES:
            found = re.fullmatch(pattern, path)
            if found and method == self.command:
                return answer(hub, body, *found.groups())
        raise Refused(404, f"no such page: {self.command} {path}")


def _space(hub, name):
    if name not in hub.spaces:
        raise Refused(404, "Repository not found", "RepoNotFound")
    return hub.spaces[name]


def _files(hub, name):
    return hub.models[name] if name in hub.models else _space(hub, name).files


def _create(hub, body):
    wanted = json.loads(body)
    name = f"{wanted['organization'] or OWNER}/{wanted['name']}"
    if wanted.get("type", "model") == "model":
        hub.models[name] = {}
        return {"url": f"{hub.address}/{name}", "name": name}
    assert (wanted["type"], wanted["sdk"]) == ("space", "gradio")
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


def _model(hub, body, name):
    return {"id": name, "sha": COMMIT, "siblings": [{"rfilename": p} for p in _files(hub, name)]}


def _tree(hub, body, name):
    return [
        {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        for path, data in _files(hub, name).items()
    ]


def _preupload(hub, body, name):
    _files(hub, name)
    files = json.loads(body)["files"]
    for file in files:
        large = name in hub.spaces and file["size"] > LARGE_BYTES
        file |= {"uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
    return {"files": files}


def _batch(hub, body, name):
    objects = json.loads(body)["objects"]
    for wanted in objects:
        if (oid := wanted["oid"]) not in hub.large:
            wanted["actions"] = {"upload": {"href": f"{hub.address}/large/{oid}"}}
    return {"transfer": "basic", "objects": objects}


def _commit(hub, body, name):
    files = _files(hub, name)
    for item in map(json.loads, body.splitlines()):
        value = item["value"]
        if item["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif item["key"] == "lfsFile":
            files[value["path"]] = data = hub.large[value["oid"]]
            assert (hashlib.sha256(data).hexdigest(), len(data)) == (value["oid"], value["size"])
        elif item["key"] == "deletedFile":
            del files[value["path"]]
    commit = hashlib.sha1(body).hexdigest()
    if name in hub.spaces:
        hub.spaces[name].commit = commit
    return {"commitUrl": f"{hub.address}/{name}/commit/{commit}", "commitOid": commit}


def _variables(hub, body, name):
    space = _space(hub, name)
    if body:
        wanted = json.loads(body)
        space.variables[wanted["key"]] = wanted["value"]
    return {key: {"key": key, "value": value} for key, value in space.variables.items()}


def _hardware(hub, body, name):
    wanted, space = json.loads(body), _space(hub, name)
    space.hardware, space.sleep_time = wanted["flavor"], wanted.get("sleepTimeSeconds")
    return _runtime(hub, b"", name)


def _runtime(hub, body, name):
    space = _space(hub, name)
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
_REPO = rf"/api/(?:models|spaces)/{_NAME}"
_ROUTES = [
    ("GET", "/api/whoami-v2", lambda hub, body: {"type": "user", "name": OWNER, "orgs": []}),
    ("POST", "/api/repos/create", _create),
    ("POST", "/api/validate-yaml", lambda hub, body: {"errors": [], "warnings": []}),
    ("GET", rf"{_REPO}(?:/revision/.*)?", _model),
    ("GET", rf"{_REPO}/tree/.*", _tree),
    ("POST", rf"{_REPO}/preupload/main", _preupload),
    ("POST", f"/spaces/{_NAME}.git/info/lfs/objects/batch", _batch),
    ("POST", rf"{_REPO}/commit/main", _commit),
    ("GET", rf"{_REPO}/variables", _variables),
    ("POST", rf"{_REPO}/variables", _variables),
    ("GET", rf"{_REPO}/secrets", lambda hub, body, name: {}),
    ("POST", rf"{_REPO}/hardware", _hardware),
    ("GET", rf"{_REPO}/runtime", _runtime),
]
