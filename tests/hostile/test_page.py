"""Every input of every end point gets what it should not get, and says so in a sentence; doors that
nobody thinks of; and what was found, as the stranger who found it would try again."""

import json
import re
from contextlib import closing
from itertools import islice
from urllib.parse import quote

import httpx
import pytest

from percov2_core.bitstream import Stream
from percov2_core.ui.device import MAX_QUEUE
from tests.hostile import values
from tests.hostile.stranger import API, Call, Stranger, Visitor, file_data
from tests.picture_files import saved
from tests.tiny import picture, tiny_codec
from tests.ui_server import eventually

pytestmark = [pytest.mark.ui, pytest.mark.timeout(600)]

AT_ONCE = 8
SENTENCE = 200  # characters
GROWTH_BYTES = 50 * 2**20
AGAIN = 8  # one call of so many is made again, when all that the page loads late is there
FILES = ("file", "image")
FEW = 3  # values for an input of a function that has had all of them at another end point


class Attack:
    """A session in the middle of its visit, and every call that it will try."""

    def __init__(self, visitor, target, file):
        self.visitor, self.target, self.file = visitor, target, file
        self.photo = visitor.upload("photo.png", saved(picture(64, 64), "PNG"))
        visitor.patient = False
        visitor.put("pc-image", self.photo)
        assert visitor.fire("pc-image", "change").success
        assert visitor.fire("pc-compress", "click").success

    def usual(self, part):
        """What a well-meaning program would send to an input."""
        kind, props = self.visitor.parts[part]["type"], self.visitor.parts[part]["props"]
        if kind not in FILES:
            return self.visitor.values.get(part)
        return self.photo if kind == "image" or props.get("label") == "picture" else self.file

    def calls(self):
        """Every end point, public or not, with one input after the other replaced.

        Gradio lists a function once for each event that calls it (`draw`, `draw_1`): the first gets
        everything.
        """
        paths = values.payloads(self.target.places)
        files = values.uploads(tiny_codec())
        uploads = {what: self.visitor.upload(*file) for what, file in files.items()}
        for name in (values.MARK, "../" * 50, "a" * 10_000, "\0\x1b[31m\u202e"):
            uploads[f"named {name[:12]!r}"] = {**self.file, "orig_name": name}
        seen = set()
        for number, call in self.visitor.calls.items():
            name = re.sub(r"_\d+$", "", call["api_name"])
            function = f"{name} {call['inputs']} {call['outputs']}"
            most = FEW if function in seen else None
            seen.add(function)
            usual = [self.usual(part) for part in call["inputs"]]
            events = values.EVENTS[: most if call["collects_event_data"] else 1]
            for event in events:
                yield Call(number, usual, f"event {event}", event)
            for data in (usual[:-1], [*usual, 1], []):
                yield Call(number, data, f"{len(data)} inputs")
            for place, part in enumerate(call["inputs"]):
                kind, props = (self.visitor.parts[part][what] for what in ("type", "props"))
                tried = values.ANYTHING | (paths | uploads if kind in FILES else {})
                if props.get("label") in ("settings", "Settings of a run"):
                    tried = values.SETTINGS | tried
                if kind == "state":  # kept by the server: what is sent must not matter
                    tried = {"a text": "x", "a path": paths["a picture outside, bare"]}
                for what, value in islice(tried.items(), most):
                    data = [*usual[:place], value, *usual[place + 1 :]]
                    yield Call(number, data, f"{kind} {place}: {what}")

    def faults(self, answer):
        call, said = self.visitor.calls[answer.call.number], answer.error or ""
        kinds = [self.visitor.parts[part]["type"] for part in call["outputs"]]
        shown = zip(kinds, answer.data, strict=False)
        html = [value for kind, value in shown if kind in ("html", "markdown")]
        _, _, what = answer.call.what.partition(": ")
        faults = {
            f"HTTP {answer.status}": answer.status >= 500 and not answer.full and not said,
            "no answer": answer.status == 200 and not answer.finished,
            "failed without a word": answer.finished and not answer.success and not said,
            "a traceback": "Traceback" in answer.text,
            "a secret": values.SECRET in answer.text,
            f"said {said[:300]!r}": len(said) > SENTENCE or not said.isprintable() or "<" in said,
            f"told where files are: {said[:300]!r}": str(self.target.server.files) in said,
            "HTML of the stranger's": values.MARK in json.dumps(html),
            "accepted": what in values.payloads(self.target.places) and not answer.refused,
        }
        where = f"{call['api_name']}, {answer.call.what}"
        return [f"{where}: {fault}" for fault, is_so in faults.items() if is_so]


def test_every_input_of_every_end_point_is_refused_or_harmless(visitor, target, file):
    attack, wrong, tried = Attack(visitor, target, file), [], 0
    calls = attack.calls()
    while batch := list(islice(calls, AT_ONCE)):
        tried += len(batch)
        wrong += [fault for answer in visitor.ask(batch) for fault in attack.faults(answer)]
        assert not any("no answer" in fault for fault in wrong), wrong
    assert tried >= 300
    assert wrong == []
    assert target.called == []
    assert not target.complaints()
    again, before = islice(attack.calls(), None, None, AGAIN), target.server.memory_bytes
    while batch := list(islice(again, AT_ONCE)):
        visitor.ask(batch)
    assert target.server.memory_bytes - before < GROWTH_BYTES
    with Visitor(target.server.address) as following:
        assert Attack(following, target, file)


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


MANY = MAX_QUEUE + 5  # requests at once


@pytest.fixture
def file(visitor):
    stream = tiny_codec().encode(picture(64, 64), "ultra-low", caption="a cat")
    return visitor.upload("a.pcv2", stream.to_bytes())


def test_no_picture_of_the_servers_is_read(visitor, target):
    said = set()
    for what in ("a picture outside", "nothing outside", "a text outside", "a link", "a pipe"):
        visitor.put("pc-image", {"path": target.places[what]})
        answer = visitor.fire("pc-image", "change")
        assert answer.refused and answer.error, what
        assert visitor.fire("pc-compress", "click").refused
        said.add(answer.error)
    assert len(said) == 1  # which does not even tell what is there


@pytest.mark.parametrize("by_address", [False, True])
def test_a_link_brings_no_html(visitor, by_address):
    said = b"\xff<a href=//evil.example><img src=//evil.example/x>" + b"\xe2\x80\xae" * 9
    link = Stream.from_bytes(values.caption_of_bytes(tiny_codec(), said)).to_text()
    visitor.put("pc-link-box", f"https://page.example/?pcv2={link}")
    answer = visitor.enter(link) if by_address else visitor.fire("pc-open-link", "click")
    assert answer.refused and answer.error
    assert "<" not in answer.error and answer.error.isprintable() and len(answer.error) <= 200


@pytest.mark.parametrize("size", [(4096, 4096), (2048, 2048), (2048, 1024)])
def test_a_large_claim_does_not_occupy_the_model(visitor, target, size):
    stream = tiny_codec().encode(picture(64, 64), "extreme", caption="a cat")
    file = visitor.upload("a.pcv2", values.claim(stream, "extreme", size, values.NOISE))
    before = target.server.work
    visitor.put("pc-file", file)
    answers = [
        visitor.one(visitor.named("inspect"), [file]),
        visitor.one(visitor.named("decompress"), [file, "balanced", 0, "", "own"]),
        visitor.fire("pc-file", "upload"),
    ]
    assert all(answer.refused and answer.error for answer in answers)
    assert target.server.work.cells == before.cells
    assert size == (2048, 1024) or target.server.work == before  # no larger than the page paints


def test_the_queue_has_an_end_and_everybody_in_it_is_served(visitor, target, file):
    before = target.server.work.cells
    with target.server.holding(), Stranger(target.server.address, visitor.config) as first:
        first.join(Call(first.named("decompress"), [file, "balanced", 0, "", "own"]))
        eventually(lambda: target.server.work.cells > before)
        answers = [visitor.join(Call(visitor.named("inspect"), [file])) for _ in range(MANY)]
    inside = {answer.event_id for answer in answers if answer.event_id}
    assert 0 < len(inside) < MANY
    assert all(answer.event_id or (answer.full and "full" in answer.text) for answer in answers)
    done = [m for m in visitor.messages() if m["msg"] == "process_completed"]
    assert {message["event_id"] for message in done} == inside
    assert all(message["success"] for message in done)


def test_painting_ends_when_its_visitor_leaves(visitor, target, file):
    call, begun = (
        Call(visitor.named("decompress"), [file, "vivid", 0, "", "own"]),
        target.server.work.cells,
    )
    assert visitor.ask([call])[0].success
    whole, begun = target.server.work.cells - begun, target.server.work.cells
    with target.server.holding(), Stranger(target.server.address, visitor.config) as leaving:
        leaving.join(call)
        with closing(leaving.messages()) as messages:
            next(messages)
            eventually(lambda: target.server.work.cells - begun > whole / 2)  # two of three steps
        for _ in range(20):  # requests after which the server has seen that the first has ended
            visitor.http.get("config")
        begun = target.server.work.cells
    assert visitor.ask([call])[0].success
    assert target.server.work.cells - begun == whole
