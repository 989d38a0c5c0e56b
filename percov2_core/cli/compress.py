"""`compress`: a picture -> a `.pcv2` file."""

from __future__ import annotations

import argparse
import sys

from percov2_core.cli.common import STANDARD, Commands, add_model, check_output, report, write_bytes
from percov2_core.config import DEFAULT_SCHEDULE, MODES, SCHEDULES
from percov2_core.errors import ConfigError
from percov2_core.metrics.rate import bits_per_pixel

# The names that `caption.captioner` knows; importing them from there would pull in torch.
CAPTIONERS = ("auto", "describer", "blip", "fixed")


def add_parser(commands: Commands) -> None:
    parser = commands.add_parser("compress", help="turn a picture into a .pcv2 file")
    parser.add_argument("picture", metavar="IN", help="picture to read, - for standard input")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="file to write")
    parser.add_argument("--mode", choices=MODES, default="extreme")
    parser.add_argument("--tokens", type=int, metavar="K", help="hybrid only: tokens to send")
    parser.add_argument("--schedule", choices=SCHEDULES, default=DEFAULT_SCHEDULE)
    parser.add_argument("--caption", metavar="TEXT", help="your own words for the picture")
    parser.add_argument("--captioner", choices=CAPTIONERS, help="who describes the picture")
    add_model(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    captioner = _captioner(args.captioner, args.caption)
    if args.tokens is not None and not MODES[args.mode].partial:
        raise ConfigError(f"--tokens: needs --mode hybrid, got --mode {args.mode}")
    check_output(args.output)
    # Both load torch, which takes seconds: only once the arguments are known to be good.
    from percov2_core import image_io
    from percov2_core.weights import load_codec

    source = sys.stdin.buffer if args.picture == STANDARD else args.picture
    image = image_io.load(source)
    stream = load_codec(args.model).encode(
        image,
        mode=args.mode,
        caption=args.caption,
        schedule=args.schedule,
        tokens=args.tokens,
        captioner=captioner,
    )
    data = stream.to_bytes()
    write_bytes(args.output, data)
    bpp = bits_per_pixel(len(data), image.width, image.height)
    report(f"{image.width}x{image.height}: {len(data)} bytes, {bpp:.5f} bpp", output=args.output)


def _captioner(name: str | None, caption: str | None) -> str | None:
    """Whom to ask; an own caption and another captioner exclude each other."""
    if caption is None and name == "fixed":
        raise ConfigError("--captioner fixed: needs --caption TEXT, got none")
    if caption is not None and name not in (None, "fixed"):
        raise ConfigError(f"--caption: takes the place of --captioner {name}, got both")
    return name
