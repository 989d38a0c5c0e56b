"""Many visitors at once, against a real server with the bundled model on this machine.

    python -m tests.load [--visitors 50] [--minutes 10] [--model embedded] [--side 128] [--keep 400]

Visitors choose a picture, compress it in all modes, change the caption, open files, leave in the
middle and upload rubbish, with time to think. Every picture that comes back is compared with the
library's own. Ends with status 1 if a picture was wrong, an answer was lost or an error, the log
holds a traceback, memory grew by more than 150 MB, or a file outlived its time. That the page is
full is an answer. Pictures are `side` pixels wide, and visits are kept for `keep` seconds.
"""

import base64
import io
import random
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import torch
from PIL import Image

from percov2_core.config import DEFAULT_EFFORT, MODES
from percov2_core.ui.page import SWEEP_FILES_S
from percov2_core.ui.settings import LEAST_BYTES
from percov2_core.ui.text import CANCELLED
from percov2_core.weights import load_codec
from tests.hostile.stranger import API, Visitor
from tests.picture_files import saved
from tests.tiny import options
from tests.ui_server import ROOT, eventually, serve

MB = 2**20
GROWTH_MB = 150
ANSWER_S = 900.0  # what takes longer is lost
THINK_S = (2.0, 12.0)
FAULTS = ("errors", "wrong pictures", "lost")
CAPTIONS = ("", "a red boat on a calm lake")  # the describer's, and the visitor's


class Job(NamedTuple):
    """A picture (PNG), how it is sent, and what the library and the page make of it."""

    photo: bytes
    mode: str
    caption: str
    file: bytes
    pixels: bytes
    shown: bytes  # on the page, whose hybrid files have `LEAST_BYTES` where the caption allows it


class Crowd:
    """Everybody who visits, what they may do, and what became of it."""

    def __init__(self, server, jobs, minutes):
        self.server, self.jobs = server, jobs
        self.config = httpx.get(f"{server.address}config", timeout=60).json()
        self.ends_s = time.monotonic() + 60 * minutes
        self.lock = threading.Lock()
        self.counts = Counter()
        self.said = Counter()
        self.waits_s = []
        self.peak_mb = 0.0

    def visit(self, seed):
        dice = random.Random(seed)
        while self._thinks(dice):
            doings = (self.press, self.press, self.press, self.program, self.open, self.leave)
            self.do(dice.choice((*doings, self.rubbish)), dice)

    def do(self, doing, dice):
        with Visitor(self.server.address, self.config) as visitor:
            visitor.patience_s = ANSWER_S
            visitor.http.timeout = httpx.Timeout(ANSWER_S)
            try:
                # A browser's own: when it closes, the page knows that its visitor has left.
                with visitor.http.stream("GET", f"{API}/heartbeat/{visitor.session}"):
                    doing(visitor, dice)
            except (httpx.HTTPError, LookupError, ValueError) as error:
                self._add("lost", f"{doing.__name__}: {error!r}")

    def press(self, visitor, dice):
        """Choose, compress, and stay for another mode and another caption."""
        job = dice.choice(self.jobs)
        if not self._choose(visitor, job):
            return
        same = [other for other in self.jobs if other.photo == job.photo]
        for again in (job, *dice.sample(same, 2)):
            visitor.put("pc-mode", again.mode)
            repainted = visitor.fire("pc-mode", "input")
            if repainted.error != CANCELLED:  # nothing is there to be painted in another mode
                self._judged(repainted)
            visitor.put("pc-size", LEAST_BYTES)
            visitor.put("pc-caption-box", again.caption)
            self._judged(visitor.fire("pc-caption-box", "input"))
            began = time.monotonic()
            if self._judged(visitor.fire("pc-compress", "click"), began):
                self._compare(decoded(visitor.shown("pc-stage")), again.shown, "compress")
            if not self._thinks(dice):
                return

    def program(self, visitor, dice):
        job = dice.choice(self.jobs)
        photo, file = visitor.upload("a.png", job.photo), visitor.upload("a.pcv2", job.file)
        for name, data, expected, read in (
            ("compress", [photo, job.mode, job.caption, 0, DEFAULT_EFFORT, ""], job.file, bytes),
            ("decompress", [file, "balanced", 0, ""], job.pixels, rgb),
        ):
            began = time.monotonic()
            answer = visitor.one(visitor.named(name), data)
            if self._judged(answer, began):
                got = read(visitor.http.get(answer.data[0]["url"]).content)
                self._compare(got, expected, f"/{name}")

    def open(self, visitor, dice):
        job = dice.choice(self.jobs)
        visitor.put("pc-file", visitor.upload("a.pcv2", job.file))
        began = time.monotonic()
        if self._judged(visitor.fire("pc-file", "upload"), began):
            self._compare(decoded(visitor.shown("pc-decoded-stage")), job.pixels, "open")

    def leave(self, visitor, dice):
        if self._choose(visitor, dice.choice(self.jobs)):
            visitor.patience_s = dice.uniform(0.1, 3)
            visitor.fire("pc-compress", "click")
            self._add("left in the middle")

    def rubbish(self, visitor, dice):
        file = visitor.upload("rubbish.png", dice.randbytes(2000))
        for place, event in (("pc-image", "change"), ("pc-file", "upload")):
            visitor.put(place, file)
            answer = visitor.fire(place, event)
            right = answer.full or (answer.refused and answer.error)
            self._add("rubbish refused" if right else "lost", "" if right else "rubbish taken")

    def _thinks(self, dice):
        time.sleep(dice.uniform(*THINK_S))
        return time.monotonic() < self.ends_s

    def _choose(self, visitor, job):
        visitor.put("pc-image", visitor.upload("a.png", job.photo))
        return self._judged(visitor.fire("pc-image", "change"))

    def _judged(self, answer, began=None):
        """Count what kind of answer came; False if it is of no further use."""
        if answer.full or " full" in (answer.error or ""):
            self._add("the page is full")
        elif not answer.finished:
            self._add("lost", f"no answer: {answer.text[-100:]}")
        elif not answer.success:
            self._add("errors", str(answer.error))
        else:
            self._add("answers")
            if began is not None:
                self.waits_s.append(time.monotonic() - began)
        return answer.success

    def _compare(self, got, expected, where):
        right = got == expected
        self._add("right pictures" if right else "wrong pictures", "" if right else where)

    def _add(self, what, said=""):
        with self.lock:
            self.counts[what] += 1
            self.said[f"{what}: {said[:200]}"] += bool(said)
            self.peak_mb = max(self.peak_mb, self.server.memory_bytes / MB)


def decoded(html):
    """RGB of the decoded picture in a piece of the page."""
    found = re.search(r'class="pc-decoded" src="data:image/png;base64,([^"]+)"', html)
    return rgb(base64.b64decode(found[1])) if found else b""


def rgb(png):
    return Image.open(io.BytesIO(png)).convert("RGB").tobytes()


def jobs(codec, side_px):
    found = []
    for path in sorted((ROOT / "assets" / "examples").glob("*.jpg"))[:3]:
        photo = Image.open(path).resize((side_px, side_px * 3 // 4))
        for mode, caption in product(MODES, CAPTIONS):
            stream = codec.encode(photo, mode, caption=caption or None)
            pixels = shown = codec.decode(stream).tobytes()
            if mode == "hybrid" and sum(stream.sizes) < LEAST_BYTES:
                least = codec.encode(photo, caption=caption or None, size=LEAST_BYTES)
                shown = codec.decode(least).tobytes()
            data = saved(photo, "PNG")
            found.append(Job(data, mode, caption, stream.to_bytes(), pixels, shown))
    return found


def files_left(server):
    return sum(path.is_file() for path in server.files.rglob("*"))


def main():
    usual = {"visitors": 50, "minutes": 10.0, "model": "embedded", "side": 128, "keep": 400}
    args = options(__doc__, **usual)
    torch.set_num_threads(1)  # as the server's: other sums round in other ways
    expected = jobs(load_codec(args.model, device="cpu"), args.side)
    folder = Path(tempfile.mkdtemp(prefix="percov2-load-"))
    print(f"{len(expected)} answers known, {args.visitors} visitors come", flush=True)
    with serve(args.model, folder, keep_files_s=args.keep) as server:
        for mode in MODES:  # so that everything is loaded
            first = Crowd(server, [job for job in expected if job.mode == mode], 0)
            for doing in (first.press, first.program, first.open, first.rubbish):
                first.do(doing, random.Random(0))
        before_mb, crowd = server.memory_bytes / MB, Crowd(server, expected, args.minutes)
        with ThreadPoolExecutor(args.visitors) as pool:
            list(pool.map(crowd.visit, range(args.visitors)))
        wait_s = args.keep + min(SWEEP_FILES_S, args.keep) + 30
        with suppress(AssertionError):
            eventually(lambda: not files_left(server), wait_s)
        left = files_left(server)
        after_mb = server.memory_bytes / MB
        log = server.log.read_text(encoding="utf-8", errors="replace")
    p50, p95 = np.percentile(crowd.waits_s or [0.0], [50, 95])
    shown = dict.fromkeys(("answers", "right pictures", *FAULTS), 0) | crowd.counts
    for what, value in {
        **shown,
        "waiting, p50 / p95": f"{p50:.1f} / {p95:.1f} s",
        "MB before / peak / after": f"{before_mb:.0f} / {crowd.peak_mb:.0f} / {after_mb:.0f}",
        "temporary files left": left,
        "tracebacks": log.count("Traceback"),
    }.items():
        print(f"{what:30}{value}")
    for said, count in (+crowd.said).most_common(20):
        print(f"  {count} x {said}")
    print(log[log.index("Traceback") :][:4000] if "Traceback" in log else "")
    faults = any(crowd.counts[what] for what in FAULTS) or "Traceback" in log
    return int(faults or left > 0 or after_mb - before_mb > GROWTH_MB)


if __name__ == "__main__":
    sys.exit(main())
