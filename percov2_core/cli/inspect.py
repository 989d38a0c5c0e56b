"""`inspect`: what a `.pcv2` file holds, and what each part costs."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from percov2_core.cli.files import read_stream
from percov2_core.cli.terminal import Commands, add_model
from percov2_core.metrics import bits_per_pixel

if TYPE_CHECKING:
    from percov2_core.contents import Contents


def add_inspect(commands: Commands) -> None:
    parser = commands.add_parser("inspect", help="show what a .pcv2 file holds and what it costs")
    parser.add_argument("stream", metavar="IN", help="file to read, - for standard input")
    parser.add_argument("--json", action="store_true", help="for programs")
    add_model(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    stream = read_stream(args.stream)
    # Loads torch, which takes seconds: only once the file is known to be one.
    from percov2_core.weights import load_codec

    contents = load_codec(args.model).read(stream)
    print(_as_json(contents) if args.json else _as_text(contents))


def _as_json(contents: Contents) -> str:
    stream, size_bytes = contents.stream, sum(contents.stream.sizes)
    return json.dumps(
        {
            "width": stream.width,
            "height": stream.height,
            "mode": stream.mode,
            "schedule": stream.schedule,
            "tokens_sent": stream.tokens_sent,
            "caption": contents.caption,
            "bytes": size_bytes,
            "bpp": bits_per_pixel(size_bytes, stream.width, stream.height),
            "bits": contents.bits._asdict(),
        }
    )


def _as_text(contents: Contents) -> str:
    stream, size_bytes = contents.stream, sum(contents.stream.sizes)
    bpp = bits_per_pixel(size_bytes, stream.width, stream.height)
    return "\n".join(
        [
            f"size      {stream.width}x{stream.height}",
            f"mode      {stream.mode}",
            f"schedule  {stream.schedule}",
            f"tokens    {stream.tokens_sent} of {stream.tokens_total} sent",
            # Quoted: a stranger's caption may hold characters that command a terminal.
            f"caption   {contents.caption!r}",
            *(f"{part:<8}{bits:>7} bits" for part, bits in contents.bits._asdict().items()),
            f"file    {8 * size_bytes:>7} bits = {size_bytes} bytes, {bpp:.5f} bpp",
        ]
    )
