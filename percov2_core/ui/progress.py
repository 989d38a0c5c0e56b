"""A turn of painting, as the states of the page that a visitor sees."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from percov2_core.bitstream import Stream
from percov2_core.codec import PerCoV2
from percov2_core.ui import compare
from percov2_core.ui.painting import Look, Painted, paint
from percov2_core.ui.turns import Turn, Turns


class State(NamedTuple):
    """What to show: a stage on the way, the finished picture, or neither once it is dropped."""

    stage: str = ""
    painted: Painted | None = None

    @property
    def dropped(self) -> bool:
        return not self.stage and self.painted is None


def states(
    codec: PerCoV2, stream: Stream, look: Look, *, turns: Turns, turn: Turn
) -> Iterator[State]:
    """Paint `stream`; the last state holds the picture or says that nobody wants it.

    Raises:
        PerCoError: what `PerCoV2.decode` raises.
    """
    preview = None
    size = (stream.width, stream.height)
    for frame in paint(codec, stream, look, cancel=turn.dropped):
        if frame is None:
            yield State()
        elif not frame.finished or frame.picture is None:
            preview = frame.picture or preview
            yield State(compare.painting(size, frame=frame, picture=preview))
        elif turns.finish(turn):
            yield State(painted=Painted(frame.picture, frame.step_s))
        else:
            yield State()
