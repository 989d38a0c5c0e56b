"""The picture in numbers, beside the classic codecs at the same bytes and at their smallest."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

from percov2_core.baselines.base import Baseline, Fit, best_within
from percov2_core.baselines.registry import FACTORS, family_at_all_sizes, find_baseline
from percov2_core.errors import PerCoError
from percov2_core.evaluation.judge import Judge, Reference, Scores
from percov2_core.metrics import lpips
from percov2_core.ui import text
from percov2_core.ui.html import bytes_in_words, png_uri
from percov2_core.ui.runs import Measured

VVC_PIXELS = 1_500_000  # above it, the encoder would need minutes
FAMILIES = {"jpeg": "JPEG", "avif": "AVIF", "vvc": "VVC"}
COLUMNS = {
    "psnr": ("PSNR", "dB, higher is closer", ".2f"),
    "ms_ssim": ("MS-SSIM", "of 1, higher is closer", ".3f"),
    "lpips": ("LPIPS", "AlexNet, lower is closer", ".3f"),
    "picorank": ("PicoRank", "stands in for LPIPS, lower is closer", ".3f"),
    "feature_distance": ("Feature distance", "SqueezeNet, lower; our model trained with it", ".3f"),
}


@dataclass(frozen=True)
class Entry:
    """One codec's answer; `note` says at which setting."""

    label: str
    note: str
    size_bytes: int
    picture: Image.Image
    scores: Scores


def make_judge() -> Judge:
    """Every metric of the page that this machine has. Nothing is downloaded."""
    names = [name for name in COLUMNS if name != "lpips"]
    if os.environ.get(lpips.ENVIRONMENT):
        names.append("lpips")
    return Judge(names)


def own_entry(row: Measured) -> Entry:
    """The line of the visitor's own run."""
    run = row.run
    steps = text.steps(run.look.steps)
    note = f"{steps} of {run.painted.step_s:.2f} s, guidance {run.look.guidance:g}"
    return Entry(f"PerCoV2 {run.stream.mode}", note, run.size_bytes, run.decoded, row.scores)


def classic_entries(judge: Judge, original: Image.Image, *, size_bytes: int) -> Iterator[Entry]:
    """One codec after the other, the quick ones first."""
    reference, quick = Reference(original, judge.device), Judge(["psnr"])

    def closeness(_: Image.Image, decoded: Image.Image) -> float:
        return quick.score(reference, decoded).psnr or 0.0

    def entry(label: str, fit: Fit) -> Entry:
        decoded = fit.codec.decode(fit.data)
        note = text.classic_setting(fit.codec.name.partition("/")[2], fit.quality)
        return Entry(label, note, len(fit.data), decoded, judge.score(reference, decoded))

    for family, name in FAMILIES.items():
        if family == "vvc" and original.width * original.height > VVC_PIXELS:
            continue
        try:
            yield entry(f"{name}, its smallest", _smallest(find_baseline(family), original))
            fit = best_within(
                family_at_all_sizes(family), original, size_bytes=size_bytes, score=closeness
            )
            if fit is not None:
                yield entry(f"{name} in the same bytes", fit)
            elif family != "jpeg":
                tiny = _smallest(find_baseline(f"{family}/{FACTORS[-1]}"), original)
                yield entry(f"{name}, shrunk", tiny)
        except PerCoError:
            continue  # this machine lacks the codec, or the picture is too small for it


def _smallest(codec: Baseline, image: Image.Image) -> Fit:
    quality = codec.qualities[0]
    return Fit(codec, quality, codec.encode(image, quality))


def numbers_panel(entries: Sequence[Entry], *, pending: bool) -> str:
    """A table; the first entry is ours. Every picture is one click away."""
    shown = [name for name in COLUMNS if getattr(entries[0].scores, name) is not None]
    heads = "".join(
        f'<th scope="col">{COLUMNS[name][0]}<small>{COLUMNS[name][1]}</small></th>'
        for name in shown
    )
    rows = "".join(_row(entry, shown, ours=entries[0]) for entry in entries)
    state = f'<p class="pc-note" role="status">{text.MEASURING}</p>' if pending else _notes(entries)
    return f"""
<div class="pc-scroll" tabindex="0" role="region" aria-label="Measurements">
<table class="pc-table pc-numbers"><thead><tr><th scope="col">codec</th><th scope="col">bytes</th>
{heads}<th scope="col">picture</th></tr></thead><tbody>{rows}</tbody></table></div>{state}"""


def _notes(entries: Sequence[Entry]) -> str:
    """What a reader would miss: codecs that cannot be as small, measures that cannot be had."""
    ours = entries[0]
    notes = []
    if all(entry.size_bytes > ours.size_bytes for entry in entries[1:]):
        notes.append(text.none_as_small(ours.size_bytes))
    notes += [note for name, note in text.MISSING.items() if getattr(ours.scores, name) is None]
    return "".join(f'<p class="pc-note">{escape(note)}</p>' for note in notes)


def _row(entry: Entry, shown: Sequence[str], *, ours: Entry) -> str:
    cells = []
    for name in shown:
        value = getattr(entry.scores, name)
        cells.append(f"<td>{'' if value is None else format(value, COLUMNS[name][2])}</td>")
    times = (
        "" if entry is ours else f"<small>{entry.size_bytes / ours.size_bytes:.1f} x ours</small>"
    )
    tag = escape(f"{entry.label}: {bytes_in_words(entry.size_bytes)}")
    return (
        f'<tr{" class=pc-ours" if entry is ours else ""}><th scope="row">{escape(entry.label)}'
        f"<small>{escape(entry.note)}</small></th><td>{entry.size_bytes:,}{times}</td>"
        f'{"".join(cells)}<td><button type="button" class="pc-show" data-tag="{tag}" '
        f'aria-label="Show {tag}" onclick="percov.show(this)">'
        f'<img src="{png_uri(entry.picture)}" alt="" width="44" height="44"></button></td></tr>'
    )
