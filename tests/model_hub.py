"""A stand-in for the Hub's HTTP API, as far as models are fetched and sent."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.hub import TOKEN, Handler, serving

COMMIT = "c" * 40
Files = dict[str, bytes]


@dataclass
class ModelHub:
    """The stand-in's state.

    Attributes:
        gated: Repositories that answer for themselves, and for their files only to TOKEN.
        silent_from: Number of requests after which none is answered any more.
        asked: Method and path of every request.
    """

    address: str
    models: dict[str, Files] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    silent_from: int | None = None
    asked: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)


def files_of(folder: Path) -> Files:
    """A folder as the Hub keeps it."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@contextmanager
def stand_in() -> Iterator[ModelHub]:
    """Serve an empty Hub on a free port of this machine."""
    with serving(_Handler, ModelHub) as hub:
        try:
            yield hub
        finally:
            hub.over.set()


class _Handler(Handler):
    hub: ModelHub

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        self.hub.asked.append(f"{self.command} {path}")
        if self.hub.silent_from is not None and len(self.hub.asked) > self.hub.silent_from:
            self.hub.over.wait(60)
            self.close_connection = True
            return
        sent = self.headers.get("Authorization")
        if sent not in (None, f"Bearer {TOKEN}"):
            return self._json(401, {}, {"X-Error-Message": _INVALID})
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            return self._file(*found.groups(), known=bool(sent))
        return self._api(path, body, known=bool(sent))

    do_GET = do_HEAD = do_POST = _serve

    def _file(self, name: str, path: str, *, known: bool) -> None:
        if name in self.hub.gated and not known:
            return self._json(401, {}, {"X-Error-Code": "GatedRepo"})
        data = self.hub.models.get(name, {}).get(path)
        if data is None:
            code = "EntryNotFound" if name in self.hub.models else "RepoNotFound"
            return self._json(404, {}, {"X-Error-Code": code})
        etag = hashlib.sha1(data).hexdigest()
        return self._send(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    def _api(self, path: str, body: bytes, *, known: bool) -> None:
        if not path.startswith("/api/"):
            return self._json(404, {})
        if path == "/api/repos/create":
            name = "{organization}/{name}".format(**json.loads(body))
            self.hub.models[name] = {}
            return self._json(200, {"url": f"{self.hub.address}/{name}", "name": name})
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w+))?(?:/.*)?", path)
        if not found or found[1] not in self.hub.models:
            return self._json(404, {}, {"X-Error-Code": "RepoNotFound"})
        if self.command == "POST" and not known:
            return self._json(401, {}, {"X-Error-Message": _INVALID})
        return self._json(200, self._model(found[1], found[2], body))

    def _model(self, name: str, page: str | None, body: bytes) -> Any:
        files = self.hub.models[name]
        if page == "tree":
            return [
                {"type": "file", "path": p, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                for p, d in files.items()
            ]
        if page == "preupload":
            wanted = [file["path"] for file in json.loads(body)["files"]]
            each = {"uploadMode": "regular", "shouldIgnore": False}
            return {"files": [{"path": path, **each} for path in wanted]}
        if page == "commit":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    files[value["path"]] = base64.b64decode(value["content"])
            address = f"{self.hub.address}/{name}/commit/{COMMIT}"
            return {"commitUrl": address, "commitOid": COMMIT}
        return {"id": name, "sha": COMMIT, "siblings": [{"rfilename": path} for path in files]}

    def _json(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(answer).encode(), headers or {})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


_INVALID = "Invalid credentials in Authorization header"
