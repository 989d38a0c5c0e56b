"""The compare slider: a native range input over two pictures, so that every keyboard and every
screen reader can use it."""

from __future__ import annotations

from html import escape

from PIL import Image

from percov2_core.ui import text
from percov2_core.ui.html import bytes_in_words, png_uri
from percov2_core.ui.painting import Frame
from percov2_core.ui.runs import Run

_ZOOM = """
  <span class="pc-gap"></span>
  <span class="pc-group">
   <button type="button" onclick="percov.zoom(this, 0.5)" aria-label="Zoom out">&minus;</button>
   <output class="pc-zoom">1&times;</output>
   <button type="button" onclick="percov.zoom(this, 2)" aria-label="Zoom in">+</button>
  </span>
  <button type="button" onclick="percov.full(this)">Full screen</button>
  <button type="button" onclick="percov.save(this)">Save PNG</button>"""


def compare(
    original: Image.Image,
    decoded: Image.Image,
    *,
    tag: str,
    caption: str,
    left: str = text.ORIGINAL,
) -> str:
    """Original on the left, decoded on the right of a movable edge."""
    return f"""
<figure class="pc-compare" style="--ratio:{original.width / original.height:.5f};--split:50">
 <div class="pc-view" tabindex="0" role="region" aria-label="Original and result">
  <div class="pc-frame">
   <img class="pc-decoded" src="{png_uri(decoded)}" alt="Decoded picture: {escape(caption)}">
   <img class="pc-original" src="{png_uri(original)}" alt="{escape(left)}">
   <span class="pc-tag pc-left">{escape(left)}</span>
   <span class="pc-tag pc-right">{escape(tag)}</span>
   <span class="pc-edge"></span>
   <input class="pc-range" type="range" min="0" max="100" step="1" value="50"
    aria-label="{text.COMPARE_LABEL}" aria-valuetext="50 percent original"
    oninput="percov.split(this, this.value)">
  </div>
 </div>
 <div class="pc-tools" role="group" aria-label="View">
  <button type="button" onclick="percov.split(this, 100)">{escape(left)}</button>
  <button type="button" onclick="percov.split(this, 50)">Both</button>
  <button type="button" onclick="percov.split(this, 0)">{text.DECODED}</button>{_ZOOM}
 </div>
</figure>"""


def of_run(run: Run) -> str:
    """A run's picture beside its original, or alone where there is none."""
    tag = bytes_in_words(run.size_bytes)
    if run.original is None:
        return single(run.decoded, tag=tag, caption=run.caption)
    return compare(run.original, run.decoded, tag=tag, caption=run.caption)


def single(decoded: Image.Image, *, tag: str, caption: str) -> str:
    """A decoded picture whose original nobody here has."""
    return f"""
<figure class="pc-compare" style="--ratio:{decoded.width / decoded.height:.5f};--split:0">
 <div class="pc-view" tabindex="0" role="region" aria-label="Result">
  <div class="pc-frame">
   <img class="pc-decoded" src="{png_uri(decoded)}" alt="Decoded picture: {escape(caption)}">
   <span class="pc-tag pc-right">{escape(tag)}</span>
  </div>
 </div>
 <div class="pc-tools" role="group" aria-label="View">{_ZOOM}
 </div>
</figure>"""


def painting(
    size: tuple[int, int],
    *,
    frame: Frame | None = None,
    picture: Image.Image | None = None,
    note: str = "",
) -> str:
    """The place of the result before it is there: same size, so that nothing jumps."""
    done = frame.step / frame.total if frame else 0.0
    if frame:
        note = f"Step {frame.step} of {frame.total}, {frame.step_s:.2f} s each"
    shown = f'<img class="pc-decoded" src="{png_uri(picture)}" alt="">' if picture else ""
    return f"""
<figure class="pc-compare pc-busy" style="--ratio:{size[0] / size[1]:.5f}" aria-busy="true">
 <div class="pc-view"><div class="pc-frame">{shown}<div class="pc-shimmer"></div></div></div>
 <div class="pc-tools"><progress max="1" value="{done:.3f}" aria-label="{text.PAINTING}"></progress>
 <span role="status">{note}</span></div>
</figure>"""
