"""What gradio serves beside the page: doors that nobody thinks of."""

import json
from urllib.parse import quote

import httpx
import pytest

from tests.hostile import values
from tests.hostile.stranger import API, file_data

pytestmark = [pytest.mark.ui, pytest.mark.timeout(300)]

UP = ("../" * 12, "..%2f" * 12, "%2e%2e/" * 12, "....//" * 12, "%252e%252e/" * 12)
ODD_ROUTES = (
    f"{API}/queue/data?session_hash=nobody", f"{API}/call/inspect/none", f"{API}/call/no/none",
    f"{API}/upload_progress?upload_id=none", f"{API}/stream/nobody/none/1/playlist.m3u8",
    f"{API}/custom_component/file/server/component/x", f"{API}/deep_link?session_hash=nobody",
    f"{API}/runs", f"{API}/run-history/records", f"{API}/user", f"{API}/token", f"{API}/dev/reload",
    f"{API}/vibe-code", f"{API}/profiling/traces", "config?deep_link=../../x", "?deep_link=..%2f..",
    "monitoring", "monitoring/x", "login", "docs", "openapi.json",
)  # fmt: skip
ODD_POSTS = (
    "cancel", "reset", "stream/none", "stream/none/close", "vibe-edit", "vibe-code",
    "undo-vibe-edit", "process_recording", "run-history/connect", "upload",
)  # fmt: skip
TAMPERED = (
    {"fn_index": 10**6}, {"fn_index": -1}, {"fn_index": None}, {"session_hash": None},
    {"session_hash": "../../x"}, {"session_hash": "a" * 10**6}, {"trigger_id": 10**9},
    {"batched": True}, {"simple_format": True}, {"data": None}, {"data": {}}, {"event_id": "x"},
)  # fmt: skip


def requests(target):
    """-> route, and what is posted to it if anything is."""
    secret = target.places["a picture outside"]
    for route in ODD_ROUTES:
        yield route, None
    for place in target.places.values():
        for route in ("file=", "file/", "proxy="):
            yield f"{API}/{route}{quote(place)}", None
    for folder in ("static/", "assets/", "svelte/", f"{API}/file=", f"{API}/file=/"):
        for up in UP:
            yield f"{folder}{up}etc/passwd", None
            yield f"{folder}{up}{secret[1:]}", None
    usual = {"data": [file_data(secret)], "session_hash": "nobody", "fn_index": 2}
    for route in ("queue/join", "run/predict", "run/inspect", "api/decompress"):
        for change in TAMPERED:
            yield f"{API}/{route}", usual | change
    for name in ("inspect", "compress", "choose", "nothing", "..%2f..", "v2/inspect"):
        yield f"{API}/call/{name}", usual
    for part in (1, 3, 10**6, "x"):
        for name in ("ls", "preprocess", "__init__", "move_resource_to_block_cache"):
            yield f"{API}/component_server", {**usual, "component_id": part, "fn_name": name}
    for route in ODD_POSTS:
        yield f"{API}/{route}", {"event_id": "x", "prompt": "x", "code": "x", "bucket_id": "a/b"}
    for body in (b"", b"{", b"[" * 100_000, b"\xff" * 100, b"{" + b'"a":1,' * 10**6):
        yield f"{API}/queue/join", body


def test_no_route_gives_away_what_is_not_the_visitors(visitor, target):
    wrong = []
    for route, body in requests(target):
        method = "GET" if body is None else "POST"
        sent = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        try:
            answer = visitor.http.request(method, route, content=sent, headers=headers)
        except httpx.HTTPError as error:
            wrong.append(f"{method} {route[:100]}: {error!r}")
            continue
        said = answer.text
        faults = {
            f"HTTP {answer.status_code}": answer.status_code >= 500,
            "a secret": values.SECRET in said or "root:x:0" in said,
            "a picture": answer.content[:4] == b"\x89PNG",
            "a traceback": "Traceback" in said,
            "elsewhere": answer.is_redirect,
        }
        asked = f"{method} {route[:100]} {str(body)[:100]}"
        wrong += [f"{asked}: {what}" for what, is_so in faults.items() if is_so]
    assert wrong == []
    assert target.called == []
    assert not target.complaints()


@pytest.mark.parametrize(
    "name",
    ["../../../out.png", "..\\out.png", "/etc/out.png", "a" * 5000, "\0.png", "\u202e.png", ".",
     values.MARK, "..", "", "a.png/../../b", "a" * 300],
)  # fmt: skip
def test_an_upload_stays_in_its_folder(visitor, target, name):
    answer = visitor.http.post(f"{API}/upload", files={"files": (name, b"no picture")})
    assert answer.status_code < 500
    for path in answer.json() if answer.is_success else ():
        folder = target.server.files
        assert folder in (folder / path).resolve().parents
    assert not target.complaints()


def test_what_is_too_large_is_not_kept(visitor, target):
    answer = visitor.http.post(f"{API}/upload", files={"files": ("a.big", bytes(30 * 2**20))})
    assert answer.status_code in (400, 413)
    large = [path for path in target.server.files.rglob("*") if path.lstat().st_size > 25 * 2**20]
    assert large == []
