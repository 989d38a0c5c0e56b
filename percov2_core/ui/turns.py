"""Which painting each visitor still wants: pressing Compress again replaces the one before."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True, eq=False)
class Turn:
    """One painting of one visitor, from its start on the device to the picture.

    Attributes:
        number: Count of the visitor's presses of Compress, from 1; 0 for what no press began.
        dropped: Set once nobody wants the picture.
    """

    session: str
    number: int
    dropped: threading.Event = field(default_factory=threading.Event)


@dataclass
class _Visit:
    pressed: int = 0  # the newest press
    over: int = 0  # the newest press that was cancelled, or whose picture was shown
    looks: int = 0  # how often the visitor went back to an earlier picture
    compared: tuple[int, int, int] | None = None  # press, look and picture of the newest comparison
    turns: set[Turn] = field(default_factory=set)

    def wants(self, number: int) -> bool:
        return number == 0 or (number > self.over and number >= self.pressed)

    def drop_unwanted(self) -> None:
        for turn in self.turns:
            if not self.wants(turn.number):
                turn.dropped.set()


class Turns:
    """Counts by the browser's own numbers, so that it does not matter which of two requests
    arrives first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._visits: dict[str, _Visit] = {}

    def press(self, session: str, number: int) -> bool:
        """Compress was pressed; earlier presses count no longer. False if this one is over."""
        with self._visit(session) as visit:
            visit.pressed = max(visit.pressed, number)
            visit.drop_unwanted()
            return visit.wants(number)

    def cancel(self, session: str, number: int) -> bool:
        """Cancel was pressed after `number` presses. False if nothing was under way."""
        with self._visit(session) as visit:
            under_way = number > visit.over
            visit.over = max(visit.over, number)
            visit.drop_unwanted()
            return under_way

    @contextmanager
    def take(self, session: str, number: int = 0) -> Iterator[Turn]:
        """A turn on the device; it is dropped from the start if nobody wants it any more."""
        turn = Turn(session, number)
        with self._visit(session) as visit:
            visit.turns.add(turn)
            visit.drop_unwanted()
        try:
            yield turn
        finally:
            turn.dropped.set()
            with self._visit(session) as visit:
                visit.turns.discard(turn)
                visit.over = max(visit.over, number)

    def finish(self, turn: Turn) -> bool:
        """The picture is there: True if it may be shown, and then cancelling comes too late."""
        with self._visit(turn.session) as visit:
            if turn.dropped.is_set():
                return False
            visit.over = max(visit.over, turn.number)
            return True

    def newest(self, session: str) -> int:
        """Number of the visitor's newest press, 0 if there was none."""
        with self._visit(session) as visit:
            return visit.pressed

    def look(self, session: str) -> None:
        """The visitor went back to an earlier picture."""
        with self._visit(session) as visit:
            visit.looks += 1

    def place(self, session: str) -> tuple[int, int]:
        """Changes whenever the visitor goes on to another picture, by a press or by going back."""
        with self._visit(session) as visit:
            return visit.pressed, visit.looks

    def compare(self, session: str, number: int) -> bool:
        """True once each time the visitor comes to the picture of a press."""
        with self._visit(session) as visit:
            before, visit.compared = visit.compared, (visit.pressed, visit.looks, number)
            return visit.compared != before

    def forget(self, session: str) -> None:
        """A visitor left: whatever they started is dropped."""
        with self._lock:
            left = self._visits.pop(session, _Visit())
        for turn in left.turns:
            turn.dropped.set()

    @contextmanager
    def _visit(self, session: str) -> Iterator[_Visit]:
        with self._lock:
            yield self._visits.setdefault(session, _Visit())
