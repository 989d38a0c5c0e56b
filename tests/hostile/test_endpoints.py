"""Every input of every end point gets what it should not get, and says so in a sentence."""

import json
import re
from itertools import islice

import pytest

from tests.hostile import values
from tests.hostile.stranger import Call, Visitor
from tests.picture_files import saved
from tests.tiny import picture, tiny_codec

pytestmark = [pytest.mark.ui, pytest.mark.timeout(600)]

AT_ONCE = 8
SENTENCE = 200  # characters
GROWTH_BYTES = 150 * 2**20
FILES = ("file", "image")
FEW = 3  # values for an input of a function that has had all of them at another end point


class Attack:
    """A session in the middle of its visit, and every call that it will try."""

    def __init__(self, visitor, target):
        self.visitor, self.target = visitor, target
        self.photo = visitor.upload("photo.png", saved(picture(64, 64), "PNG"))
        stream = tiny_codec().encode(picture(64, 64), "ultra-low", caption="a cat")
        self.file = visitor.upload("photo.pcv2", stream.to_bytes())
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
                kind = self.visitor.parts[part]["type"]
                tried = values.ANYTHING | (paths | uploads if kind in FILES else {})
                if kind == "state":  # kept by the server: what is sent must not matter
                    tried = {"a text": "x", "a path": paths["a picture outside, bare"]}
                for what, value in islice(tried.items(), most):
                    data = [*usual[:place], value, *usual[place + 1 :]]
                    yield Call(number, data, f"{kind} {place}: {what}")

    def faults(self, answer):
        """What is wrong with an answer."""
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


def test_every_input_of_every_end_point_is_refused_or_harmless(visitor, target):
    attack, wrong, tried = Attack(visitor, target), [], 0
    calls, before = attack.calls(), target.server.memory_bytes
    while batch := list(islice(calls, AT_ONCE)):
        tried += len(batch)
        wrong += [fault for answer in visitor.ask(batch) for fault in attack.faults(answer)]
        assert not any("no answer" in fault for fault in wrong), wrong
    assert tried >= 300
    assert wrong == []
    assert target.called == []
    assert not target.complaints()
    assert target.server.memory_bytes - before < GROWTH_BYTES
    with Visitor(target.server.address) as following:
        assert Attack(following, target)
