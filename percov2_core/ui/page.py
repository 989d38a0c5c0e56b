"""The page's frame: its tabs around a loaded codec, how it looks; and its end points for programs,
`/compress`, `/decompress` and `/inspect`, over HTTP and as MCP tools.

from gradio_client import Client, handle_file

client = Client("http://127.0.0.1:7860")
stream = client.predict(handle_file("photo.jpg"), "ultra-low", api_name="/compress")
facts = client.predict(handle_file(stream), api_name="/inspect")
print(facts["bytes"], "bytes:", facts["caption"])
picture = client.predict(handle_file(stream), api_name="/decompress")
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache
from starlette.types import ASGIApp

from percov2_core import image_io
from percov2_core.bitstream import MAX_FILE_BYTES, MAX_SEED, SUFFIX
from percov2_core.config import DEFAULT_EFFORT, OWN_PAINTER
from percov2_core.metrics import bits_per_pixel
from percov2_core.run_settings import RunSettings
from percov2_core.ui import border, text
from percov2_core.ui.border import KEEP_FILES_S, MAX_UPLOAD_BYTES, Painters, Payload
from percov2_core.ui.compress import CompressTab
from percov2_core.ui.device import DEVICE, FREE, MAX_QUEUE, MEASURE, Turns, paint
from percov2_core.ui.difference import MAPS_JS, differ, differ_from_file
from percov2_core.ui.gallery import Gallery
from percov2_core.ui.host import return_memory
from percov2_core.ui.invented import InventedTab
from percov2_core.ui.many import ManyTab
from percov2_core.ui.open_file import OpenTab
from percov2_core.ui.settings import look_of
from percov2_core.ui.share import Cards
from percov2_core.ui.text import piece, plain_html
from percov2_core.ui.tradeoff import TradeOffTab

if TYPE_CHECKING:
    from percov2_core.codec import PerCoV2

logger = logging.getLogger(__name__)

SWEEP_FILES_S = 300
_HERE = Path(__file__).parent
# System fonts only: nothing is fetched from anywhere.
_SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
_MONO = ("ui-monospace", "SF Mono", "Consolas", "DejaVu Sans Mono", "monospace")


class Page(gr.Blocks):
    """Gradio's page, with the border in front of every listener, whoever calls it."""

    around: Callable[[ASGIApp], ASGIApp]  # what the host puts around the application

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], state: Any, explicit_call: bool = False
    ) -> list[Any]:
        """Refuse in words what gradio would fetch, or fail on."""
        with border.shown_to_user():
            inputs = border.checked(inputs)
        try:
            if block_fn.fn is None:
                raise LookupError("what only a script of the page does")
            found: list[Any] = await super().preprocess_data(block_fn, inputs, state, explicit_call)
        except Exception as error:  # whatever gradio's components raise on values of a wrong kind
            logger.info("input refused: %s", type(error).__name__)
            raise gr.Error(text.WRONG_INPUT, print_exception=False) from error
        return found

    async def call_function(self, *given: Any, **named: Any) -> Any:
        """Say our errors in words, and refuse paths in events, which gradio would quote as HTML."""
        with border.shown_to_user():
            for one in (*given, *named.values()):
                if isinstance(one, gr.EventData):
                    border.checked(one._data)
            return await super().call_function(*given, **named)


def build_demo(
    codec: PerCoV2, painters: Painters | None = None, *, keep_files_s: int = KEEP_FILES_S
) -> Page:
    """The whole page; at the age `keep_files_s`, uploaded and temporary files are removed."""
    turns, painters = Turns(), painters or Painters()
    demo: Page
    with Page(
        title=f"{text.TITLE}: {text.CLAIM}",
        analytics_enabled=False,
        delete_cache=(min(SWEEP_FILES_S, keep_files_s), keep_files_s),
        fill_width=True,
    ) as demo:
        plain_html(piece("top", title=text.TITLE, claim=text.CLAIM))
        # First: gradio numbers names that are taken, and would take them for the page's own.
        EndPoints(codec, turns, painters)
        run = gr.State(None, time_to_live=KEEP_FILES_S)
        gallery = Gallery(codec, turns)
        with gr.Tabs(overflow_behavior="wrap") as tabs:
            with gr.Tab("Compress", id="compress"):
                main = CompressTab(codec, turns, run, gallery, painters)
            with gr.Tab("Open a file", id="decode"):
                opened = OpenTab(codec, turns, run, gallery, painters, demo=demo, tabs=tabs)
            with gr.Tab("Invented?", id="invented"):
                invented = InventedTab(codec, turns, run)
            with gr.Tab("Trade-off", id="plot") as tab:
                plot = TradeOffTab(codec, turns, tab)
            with gr.Tab("Many pictures", id="many"):
                ManyTab(codec, turns)
        gallery.stage(demo)
        maps = plain_html("", elem_id="pc-difference", js_on_load=MAPS_JS)
        main.stage.differ(differ, [main.done, plot.entries], maps, **MEASURE)
        opened.stage.differ(differ_from_file, run, maps, **MEASURE)
        # Pictures come from a run, from the list of runs, or from a file; what follows them:
        backs = [
            place.back(plot.back, plot.history, [tabs, main.headline, main.stage, run], **FREE)
            for place in (plot.clicks, plot.table)
        ]
        for shown in (*main.painted, *backs):
            explained = shown.then(
                main.explain, run, [main.bits, main.share], trigger_mode="multiple", **FREE
            )
            plot.follow(explained, run, main.done, main.numbers)
            explained.success(invented.offer, run, invented.shown, **FREE)
        for shown in opened.opened:
            shown.success(invented.offer, run, invented.shown, **FREE)
        more = main.settings
        settings = [tabs, more.mode, more.steps, more.guidance, more.size]
        plot.clicks.take(plot.take, outputs=settings, **FREE)
        plain_html(piece("foot", minutes=KEEP_FILES_S // 60))

        async def forget(request: gr.Request) -> None:
            """A visitor left: nothing is painted on, and nothing is kept."""
            session = request.session_hash or ""
            turns.forget(session)
            # Not `delete_state`: what the page showed last would stay. Gradio's own loop, no lock.
            demo.state_holder.session_data.pop(session, None)
            demo.state_holder.time_last_used.pop(session, None)
            await asyncio.to_thread(return_memory)

        demo.unload(forget)
    demo.around = Cards(codec, turns).around
    demo.queue(max_size=MAX_QUEUE, api_open=False)
    return demo


class EndPoints:
    """What programs may call; hidden components, so that files travel as files and are swept."""

    def __init__(self, codec: PerCoV2, turns: Turns, painters: Painters) -> None:
        self.codec, self.turns, self.painters = codec, turns, painters
        with gr.Row(visible=False):
            picture = gr.File(label="picture")
            mode = gr.Textbox("extreme", label="mode")
            caption = gr.Textbox("", label="caption")
            file = gr.File(label="file")
            preset = gr.Textbox("balanced", label="preset")
            seed = gr.Number(0, precision=0, label="seed")
            painter = gr.Textbox(OWN_PAINTER, label="painter")
            size = gr.Number(0, precision=0, label="size")
            effort = gr.Textbox(DEFAULT_EFFORT, label="effort")
            settings = gr.Textbox("", label="settings")
            stream = gr.File(label="pcv2")
            decoded = gr.Image(label="decoded", format="png")
            facts = gr.JSON(label="facts")
            button = gr.Button()
        self.cache_dir = stream.GRADIO_CACHE
        public = {**DEVICE, "api_visibility": "public", "preprocess": False}
        sent = [picture, mode, caption, size, effort, settings]
        wanted = [file, preset, seed, settings, painter]
        button.click(self.compress, sent, stream, api_name="compress", **public)
        button.click(self.decompress, wanted, decoded, api_name="decompress", **public)
        button.click(self.inspect, file, facts, api_name="inspect", **public)

    def compress(
        self,
        picture: Payload | None,
        mode: str = "extreme",
        caption: str = "",
        size: int = 0,
        effort: str = DEFAULT_EFFORT,
        settings: str = "",
    ) -> str:
        """Compress a picture to a .pcv2 file of 13 to about 722 bytes (at 512 x 512 pixels).

        Args:
            picture: The picture: a PNG, JPEG, WebP or AVIF file that was uploaded, of at most 20 MB
                and 25 megapixels, with sides of at least 64 pixels.
            mode: "extreme" (about 700 bytes, closest), "ultra-low" (about 110 bytes) or "hybrid",
                which without a size sends the caption alone (about 13 bytes).
            caption: English words for the picture, at most 1000 bytes, which travel in the file and
                guide the painting; empty lets the codec describe the picture.
            size: Instead of the mode: the most bytes that the file may have, 13 to 200000; 0 sets
                no limit.
            effort: "fast", "normal" or "best": how long to look for tokens that come close; a
                second, some seconds, or a minute.
            settings: Instead of mode, caption, size and effort: one line of JSON as the page shows
                it, such as {"size": 240, "effort": "fast"}; empty for none.

        Returns:
            The .pcv2 file.
        """
        chosen = border.read_picture(picture)
        said = border.words("caption", caption).strip() or None
        most = border.whole("size", size, 0, MAX_FILE_BYTES) or None
        asked = border.read_settings(settings)
        if asked is None:
            kind = {"size": most} if most else {"mode": mode}
            asked = RunSettings(**kind, caption=said, effort=effort)
        image = image_io.fitted(chosen.image, asked.fit) if asked.fit else chosen.image
        border.check_effort(asked.effort, image)
        stream = self.codec.encode(image, **asked.encoding)
        name = f"{chosen.name}{SUFFIX}"
        return str(save_bytes_to_cache(stream.to_bytes(), name, self.cache_dir))

    def decompress(
        self,
        file: Payload | None,
        preset: str = "balanced",
        seed: int = 0,
        settings: str = "",
        painter: str = OWN_PAINTER,
        request: gr.Request = None,  # type: ignore[assignment]  # gradio gives it
    ) -> Iterator[Any]:
        """Paint the picture of a .pcv2 file. Most details are invented: plausible, not true.

        Args:
            file: A .pcv2 file that was uploaded, of a picture of at most 2.6 megapixels.
            preset: "faithful" (closest to the original), "balanced" or "vivid" (liveliest).
            seed: A whole number from 0 to 4294967295: another one invents other details; 0 is the
                file's own.
            settings: Instead of preset and seed: one line of JSON as the page shows it, such as
                {"steps": 4, "guidance": 1.5}, steps from 1 to 100, guidance from 1 to 20; empty for
                none.
            painter: "own" is the model's; another that the page offers, such as "sd3-medium",
                repaints its picture, and of a caption alone paints the caption.

        Returns:
            The picture, as PNG.
        """
        stream = border.read_file(file)
        seed = border.whole("seed", seed, 0, MAX_SEED)
        asked = border.read_settings(settings) or RunSettings(preset=preset, seed=seed)
        look = look_of(self.codec, stream, asked, self.painters.checked(painter))
        contents = self.codec.read(stream)
        with self.turns.take(request.session_hash or "") as turn:
            for frame in paint(self.codec, contents, look, turn):
                yield frame.picture

    def inspect(self, file: Payload | None) -> dict[str, Any]:
        """Say what a .pcv2 file holds and where its bits went.

        Args:
            file: A .pcv2 file that was uploaded.

        Returns:
            Width and height in pixels, mode, schedule, caption, length in bytes, bits per pixel,
            tokens sent and in all on each level, and the bits of header, caption and tokens.
        """
        stream = border.read_file(file)
        contents = self.codec.read(stream)
        size_bytes = sum(stream.sizes)
        names = ("width", "height", "mode", "schedule")
        return {name: getattr(stream, name) for name in names} | {
            "tokens_sent": stream.sent._asdict(),
            "tokens_total": stream.tokens_total._asdict(),
            "caption": contents.caption,
            "bytes": size_bytes,
            "bpp": bits_per_pixel(size_bytes, stream.width, stream.height),
            "bits": contents.bits._asdict(),
        }


def launch_options() -> dict[str, Any]:
    """Arguments of `gr.Blocks.launch` that belong to the page, whoever starts it."""
    files = ("page.css", "page.js", "compare.js")
    style, *scripts = ((_HERE / name).read_text("utf-8") for name in files)
    return {
        "theme": gr.themes.Base(
            primary_hue=gr.themes.colors.teal,
            neutral_hue=gr.themes.colors.slate,
            radius_size=gr.themes.sizes.radius_lg,
            spacing_size=gr.themes.sizes.spacing_sm,
            font=[gr.themes.Font(name) for name in _SANS],
            font_mono=[gr.themes.Font(name) for name in _MONO],
        ),
        # Not by `css`: gradio puts a prefix before every rule, which breaks those for phones.
        "head": f"<style>{style}</style>" + "".join(f"<script>{one}</script>" for one in scripts),
        "max_file_size": MAX_UPLOAD_BYTES,
        "state_session_capacity": 200,
        "footer_links": ["api"],
        "run_history": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        # An extra of gradio: `pip install "gradio[mcp]"`.
        "mcp_server": find_spec("mcp") is not None,
    }
