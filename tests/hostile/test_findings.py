"""What was found on a running page, as the stranger who found it would try again."""

from contextlib import closing

import pytest

from percov2_core.bitstream import Stream
from percov2_core.ui.device import MAX_QUEUE
from tests.hostile import values
from tests.hostile.stranger import Call, Stranger
from tests.tiny import picture, tiny_codec
from tests.ui_server import eventually

pytestmark = [pytest.mark.ui, pytest.mark.timeout(300)]

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
        visitor.one(visitor.named("decompress"), [file, "balanced", 0]),
        visitor.fire("pc-file", "upload"),
    ]
    assert all(answer.refused and answer.error for answer in answers)
    assert target.server.work.cells == before.cells
    assert size == (2048, 1024) or target.server.work == before  # no larger than the page paints


def test_the_queue_has_an_end_and_everybody_in_it_is_served(visitor, target, file):
    before = target.server.work.cells
    with target.server.holding(), Stranger(target.server.address, visitor.config) as first:
        first.join(Call(first.named("decompress"), [file, "balanced", 0]))
        eventually(lambda: target.server.work.cells > before)
        answers = [visitor.join(Call(visitor.named("inspect"), [file])) for _ in range(MANY)]
    inside = {answer.event_id for answer in answers if answer.event_id}
    assert 0 < len(inside) < MANY
    assert all(answer.event_id or (answer.full and "full" in answer.text) for answer in answers)
    done = [m for m in visitor.messages() if m["msg"] == "process_completed"]
    assert {message["event_id"] for message in done} == inside
    assert all(message["success"] for message in done)


def test_painting_ends_when_its_visitor_leaves(visitor, target, file):
    call, begun = Call(visitor.named("decompress"), [file, "vivid", 0]), target.server.work.cells
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
