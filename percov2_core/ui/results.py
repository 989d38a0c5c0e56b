"""What comes out of a run: headline, compare slider, bits, numbers, runs, as HTML."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
from PIL import Image

from percov2_core.bitstream import Stream
from percov2_core.config import LEVELS
from percov2_core.metrics import RELATED, STAR, STAR_NOTE, Scores, bits_per_pixel
from percov2_core.run_settings import USUAL, RunSettings
from percov2_core.ui import text
from percov2_core.ui.border import Chosen
from percov2_core.ui.device import Look, Turns, is_loading, paint
from percov2_core.ui.text import bytes_in_words, data_uri, empty, one_in, piece

if TYPE_CHECKING:
    from percov2_core.codec import PerCoV2
    from percov2_core.contents import Contents, Tokens

# Metric -> what the table of numbers calls it, says of it, and how many digits it shows.
_TOLD = {
    "lpips": ("LPIPS", "AlexNet, lower is closer", 3),
    "dists": ("DISTS", "lower is closer", 3),
    "ms_ssim": ("MS-SSIM", "of 1, higher is closer", 3),
    "meaning": ("Semantic agreement", "cosine, higher is closer", 3),
    "patch_swd": ("Patch SWD", "detail, lower is closer", 0),
    "psnr": ("PSNR", "dB, higher is closer", 2),
    "feature_distance": ("Feature distance", "SqueezeNet, lower is closer", 3),
    "picorank": ("PicoRank", "distilled from SqueezeNet's distance", 3),
}
COLUMNS = {
    name: (f"{title} {STAR}" if name in RELATED else title, *more)
    for name, (title, *more) in _TOLD.items()
}


@dataclass(frozen=True)
class Run:
    """One file and the picture that came out of it."""

    name: str
    contents: Contents
    look: Look
    headline: str
    decoded: Image.Image
    step_s: float
    original: Image.Image | None = None
    number: int = 0  # of the visitor's press of Compress that began it, 0 for an opened file
    tokens: Tokens | None = None  # all that the encoder found, of opened files nobody knows
    settings: RunSettings = USUAL

    @property
    def stream(self) -> Stream:
        return self.contents.stream

    @property
    def key(self) -> str:
        """What the page calls this run, and no other of the same visitor."""
        return f"{self.number}-{self.stream.check:04x}-{self.size_bytes}"

    @property
    def size_bytes(self) -> int:
        return sum(self.stream.sizes)

    @property
    def painted_by(self) -> str:
        """Words for a painter other than the model's."""
        return text.painted_by(self.look.painter, alone=not self.stream.tokens_sent)

    @property
    def bpp(self) -> float:
        return bits_per_pixel(self.size_bytes, self.stream.width, self.stream.height)


@dataclass(frozen=True)
class Entry:
    """One codec's answer; `note` says at which setting."""

    label: str
    note: str
    size_bytes: int
    picture: Image.Image
    scores: Scores


def headline(stream: Stream, chosen: Chosen, png_bytes: int, wanted: float) -> str:
    """'68 bytes: 1/6,900 of the picture as PNG, 1/310 of the JPEG you chose'.
    `wanted`: the most bytes that were asked for, or 0."""
    size_bytes = sum(stream.sizes)
    shares = [(one_in(png_bytes, size_bytes), "picture as PNG")]
    if chosen.kind != "PNG":
        shares.append((one_in(chosen.size_bytes, size_bytes), f"{chosen.kind} you chose"))
    bpp = bits_per_pixel(size_bytes, stream.width, stream.height)
    said = {"size_bytes": size_bytes, "shares": shares, "bpp": bpp, "mode": stream.mode}
    return piece("headline", **said, wanted=wanted)


def quiet_headline(big: str = text.EMPTY_HEADLINE, note: str = text.EMPTY_HEADLINE_NOTE) -> str:
    """Where there is no file."""
    return piece("quiet_headline", big=big, note=note)


def compare_run(run: Run) -> str:
    """Original and decoded picture, as compare.js shows them; decoded alone without it."""
    tag = f"From {bytes_in_words(run.size_bytes)}{run.painted_by}"
    said = {"tag": tag, "caption": run.contents.caption, "run": run.key, "of": run.name}
    return piece("compare", original=run.original, decoded=run.decoded, **said)


def paint_file(
    codec: PerCoV2,
    turns: Turns,
    stream: Stream,
    session: str,
    name: str,
    *,
    look: Look,
    settings: RunSettings = USUAL,
    original: Image.Image | None = None,
) -> Iterator[tuple[str, Run | None]]:
    """Paint what a file holds: what is to be seen of it, step by step, and at the end its run."""
    sides = (stream.width, stream.height)
    if is_loading(codec):
        yield piece("painting", size=sides, loading=text.LOADING), None
    contents = codec.read(stream)
    with turns.take(session) as turn:
        for frame in paint(codec, contents, look, turn):
            if frame.picture is None:
                yield piece("painting", size=sides, frame=frame), None
            elif turns.finish(turn):
                title = piece("opened_headline", stream=stream, beside=original is not None)
                seen = (frame.picture, frame.step_s, original)
                run = Run(name, contents, look, title, *seen, settings=settings)
                yield compare_run(run), run


def bits_panel(run: Run) -> str:
    """Where the bits went: an itemised bar, the file's own words, the cost of every token."""
    contents, stream = run.contents, run.stream
    header, caption, tokens = contents.bits
    coarse = 0 if contents.coarse is None else min(tokens, round(contents.coarse.bits.sum()))
    coarse = coarse if stream.sent.fine else tokens  # what is left of the last byte counts as well
    parts = {"header": header, "caption": caption, "coarse": coarse, "fine": tokens - coarse}
    levels: list[dict[str, Any]] = []
    shown, last, most = 0, 0, 0.0
    for name, kind in LEVELS.items():
        if (level := getattr(contents, name)) is None:
            continue
        (rows, columns), stride = level.tokens.shape, kind.token_stride
        first, last = last, last + int(level.stages.max()) + 1
        shown = last if level.sent.any() or not levels else shown  # where the file ends
        most = max(most, float(level.bits.max()))
        one = {"name": name, "rows": rows, "columns": columns, "last": last}
        # Width and height of the picture as shares of the padded grid's.
        one["cover"] = [stream.width / (columns * stride), stream.height / (rows * stride)]
        one["bits"] = [round(float(b), 2) for b in level.bits.ravel()]
        one["sent"] = level.sent.ravel().astype(int).tolist()
        levels.append(one | {"stages": (first + level.stages.ravel()).tolist()})
    told = json.dumps(levels, separators=(",", ":"))
    return piece("bits", run=run, parts=parts, levels=levels, told=told, shown=shown, most=most)


def numbers_panel(entries: Sequence[Entry], *, pending: bool, missing: Collection[str] = ()) -> str:
    """A table; the first entry is ours. Every picture is one click away. `missing` says of each
    metric that cannot be had here what it needs."""
    ours = entries[0]
    had = {name: c for name, c in COLUMNS.items() if getattr(ours.scores, name) is not None}
    notes = {"missing": missing, "star": f"{STAR} {STAR_NOTE}"}
    return piece("numbers", columns=had, entries=entries, pending=pending, **notes)


def runs_table(keys: Sequence[str], runs: pd.DataFrame) -> str:
    """Every run, newest first, and the same as a CSV file. `keys`: what their buttons tell."""
    if runs.empty:
        return empty(text.EMPTY_RUNS)
    shown = runs.drop(columns="settings")
    titles = [COLUMNS.get(name, (name.replace("_", " "),))[0] for name in shown]
    cells = [[_cell(value) for value in row] for row in shown.itertuples(index=False)]
    lines = [(key, first, rest) for key, (first, *rest) in zip(keys, cells, strict=True)]
    csv = str(runs.to_csv(index=False, lineterminator="\n")).encode()
    return piece("runs", titles=titles, lines=lines[::-1], csv=data_uri(csv, "text/csv"))


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return str(value)
