"""Endpoints for programs: `/compress`, `/decompress`, `/inspect`, over HTTP and as MCP tools.

from gradio_client import Client, handle_file

client = Client("http://127.0.0.1:7860")
stream = client.predict(handle_file("photo.jpg"), "ultra-low", api_name="/compress")
facts = client.predict(handle_file(stream), api_name="/inspect")
print(facts["bytes"], "bytes:", facts["caption"])
picture = client.predict(handle_file(stream), api_name="/decompress")
"""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache

from percov2_core.bitstream import SUFFIX
from percov2_core.codec import PerCoV2
from percov2_core.metrics.rate import bits_per_pixel
from percov2_core.ui.handlers import check_paintable, shown_to_user
from percov2_core.ui.intake import Payload, file_of, read_stream, read_upload


class Programs:
    """The three endpoints around a loaded codec."""

    def __init__(self, codec: PerCoV2, cache_dir: str) -> None:
        self.codec = codec
        self.cache_dir = cache_dir

    def compress(self, picture: Payload | None, mode: str = "ultra-low", caption: str = "") -> str:
        """Compress a picture to a .pcv2 file.

        Args:
            picture: Path or URL of a PNG, JPEG, WebP or AVIF picture.
            mode: ultra-low, extreme or hybrid.
            caption: Text to send; empty lets the page describe the picture.

        Returns:
            The .pcv2 file.
        """
        with shown_to_user():
            chosen = read_upload(*file_of(picture))
            stream = self.codec.encode(chosen.image, mode, caption=caption.strip() or None)
        data, name = stream.to_bytes(), f"{chosen.name}{SUFFIX}"
        path: str = save_bytes_to_cache(data, name, self.cache_dir)
        return path

    def decompress(self, file: Payload | None, preset: str = "balanced", seed: int = 0) -> Any:
        """Paint the picture of a .pcv2 file.

        Args:
            file: Path or URL of a .pcv2 file.
            preset: faithful, balanced or vivid.
            seed: Another number invents other details; 0 takes the file's own.

        Returns:
            The picture, as PNG.
        """
        with shown_to_user():
            stream = read_stream(file_of(file).path)
            check_paintable(stream)
            return self.codec.decode(stream, preset=preset, seed=int(seed) or None)

    def inspect(self, file: Payload | None) -> dict[str, Any]:
        """Say what a .pcv2 file holds and where its bits went.

        Args:
            file: Path or URL of a .pcv2 file.

        Returns:
            Size, mode, caption, tokens and bits of the parts.
        """
        with shown_to_user():
            stream = read_stream(file_of(file).path)
            contents = self.codec.read(stream)
        size_bytes = sum(stream.sizes)
        return {
            "width": stream.width,
            "height": stream.height,
            "mode": stream.mode,
            "schedule": stream.schedule,
            "tokens_sent": stream.tokens_sent,
            "tokens_total": stream.tokens_total,
            "caption": contents.caption,
            "bytes": size_bytes,
            "bpp": bits_per_pixel(size_bytes, stream.width, stream.height),
            "bits": contents.bits._asdict(),
        }


def add_endpoints(codec: PerCoV2, device: dict[str, Any]) -> None:
    """Hidden components, so that files travel as files and are swept like the others."""
    with gr.Row(visible=False):
        picture = gr.File(label="picture")
        mode = gr.Textbox("ultra-low", label="mode")
        caption = gr.Textbox("", label="caption")
        file = gr.File(label="file")
        preset = gr.Textbox("balanced", label="preset")
        seed = gr.Number(0, precision=0, label="seed")
        stream = gr.File(label="pcv2")
        decoded = gr.Image(label="decoded", format="png")
        facts = gr.JSON(label="facts")
        button = gr.Button()
    programs = Programs(codec, stream.GRADIO_CACHE)
    public = {**device, "api_visibility": "public", "preprocess": False}
    button.click(programs.compress, [picture, mode, caption], stream, api_name="compress", **public)
    button.click(
        programs.decompress, [file, preset, seed], decoded, api_name="decompress", **public
    )
    button.click(programs.inspect, file, facts, api_name="inspect", **public)
