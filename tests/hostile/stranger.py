"""The page's own protocol without its browser: what any program on the internet can send."""

import json
import secrets
import time
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

PATIENCE_S = 20.0  # after which a request counts as never answered
API = "gradio_api"


@dataclass(frozen=True)
class Call:
    """One call of an end point by its number; `what` says for the report what is odd about it."""

    number: int
    data: list[Any]
    what: str = ""
    event: Any = None  # what the page's scripts would send along


@dataclass
class Answer:
    """What came back: `error` is what the visitor would read, `text` all that was sent."""

    call: Call
    status: int  # of the request to join the queue
    text: str
    event_id: str = ""
    finished: bool = False
    success: bool = False
    error: str | None = None
    data: list[Any] = field(default_factory=list)

    @property
    def full(self):
        return self.status == 503

    @property
    def refused(self):
        return self.status >= 400 or (self.finished and not self.success)

    def finish(self, output, *, success):
        self.finished, self.success = True, success
        self.error, self.data = output.get("error"), output.get("data") or []


class Stranger(AbstractContextManager):
    """One session, which may do what it likes."""

    def __init__(self, address, config=None):
        self.http = httpx.Client(base_url=address, timeout=PATIENCE_S)
        self.patience_s = PATIENCE_S
        self.config = config or self.http.get("config").json()
        self.calls = {call["id"]: call for call in self.config["dependencies"]}
        self.parts = {part["id"]: part for part in self.config["components"]}
        self.session = secrets.token_hex(6)

    def __exit__(self, *_):
        self.http.close()

    def named(self, name):
        return next(i for i, call in self.calls.items() if call["api_name"] == name)

    def part(self, elem_id):
        return next(i for i, part in self.parts.items() if part["props"].get("elem_id") == elem_id)

    def upload(self, name, data):
        """-> what gradio's own client sends for the file from then on."""
        answer = self.http.post(f"{API}/upload", files={"files": (name, data)})
        answer.raise_for_status()
        return file_data(answer.json()[0], orig_name=name)

    def join(self, call):
        """Ask for a place in the queue; what needs none is answered at once."""
        queued = self.calls[call.number]["queue"]
        route = f"{API}/{'queue/join' if queued else 'run/predict'}"
        body = {"data": call.data, "event_data": call.event, "fn_index": call.number}
        body["session_hash"] = self.session
        headers = {"content-type": "application/json"}
        reply = self.http.post(route, content=json.dumps(body), headers=headers)
        answer = Answer(call, reply.status_code, reply.text)
        if queued and reply.is_success:
            answer.event_id = reply.json()["event_id"]
        elif not queued and ("error" in reply.json() or reply.is_success):
            answer.finish(reply.json(), success=reply.is_success)
        return answer

    def messages(self):
        """What the server says to this session, until nothing is under way."""
        route, who = f"{API}/queue/data", {"session_hash": self.session}
        asked = self.http.stream("GET", route, params=who, timeout=self.patience_s)
        with suppress(httpx.ReadTimeout), asked as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    yield json.loads(line[5:])

    def ask(self, calls):
        """All at once; -> their answers, in order."""
        answers = [self.join(call) for call in calls]
        waiting = {answer.event_id: answer for answer in answers if answer.event_id}
        if not waiting:
            return answers
        deadline = time.monotonic() + self.patience_s
        with closing(self.messages()) as messages:
            for message in messages:
                if answer := waiting.get(message.get("event_id", "")):
                    answer.text += json.dumps(message, ensure_ascii=False)
                    if message["msg"] == "process_completed":
                        answer.finish(message["output"] or {}, success=message["success"])
                done = all(answer.finished for answer in waiting.values())
                if done or time.monotonic() > deadline:  # the server says it is alive every 15 s
                    break
        return answers

    def one(self, number, data):
        return self.ask([Call(number, list(data))])[0]


class Visitor(Stranger):
    """Somebody who uses the page as it is meant: values of its parts, and what follows what."""

    def __init__(self, address, config=None):
        super().__init__(address, config)
        self.values = {i: part["props"].get("value") for i, part in self.parts.items()}
        self.presses = 0
        self.patient = True  # stays for what is measured after a picture is there

    def put(self, elem_id, value):
        self.values[self.part(elem_id)] = value

    def shown(self, elem_id):
        return self.values[self.part(elem_id)]

    def fire(self, elem_id, event):
        """Something happens to an element; -> the first answer, or the first that failed."""
        return self._fire([self.part(elem_id), event])

    def enter(self, link):
        self.http.params = httpx.QueryParams(pcv2=link)
        return self._fire("load")

    def _fire(self, wanted):
        answers = []
        for number, call in self.calls.items():
            if any(wanted in (target, target[1]) for target in call["targets"]):
                answers += self._run(number)
        return next((answer for answer in answers if not answer.success), answers[0])

    def _run(self, number, *, deep=False):
        call = self.calls[number]
        data = [self.values.get(i) for i in call["inputs"]]
        if "presses" in (call["js"] or ""):  # which the page's own script counts
            self.presses += 1
            data[[self.parts[i]["type"] for i in call["inputs"]].index("number")] = self.presses
        answer = self.one(number, data)
        for i, value in zip(call["outputs"], answer.data, strict=answer.success):
            if not isinstance(value, dict) or value.get("__type__") != "update":
                self.values[i] = value
            elif "value" in value:
                self.values[i] = value["value"]
        yield answer
        for follower in self.calls.values():
            asked = answer.success if follower["trigger_only_on_success"] else answer.finished
            if follower["trigger_after"] == number and asked and (self.patient or not deep):
                yield from self._run(follower["id"], deep=True)


def file_data(path, **more):
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}, **more}
