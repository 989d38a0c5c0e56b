"""`compress`, `decompress`: a picture -> a `.pcv2` file -> a picture. `inspect`: what it holds."""

from __future__ import annotations

import argparse
import io
import json
from functools import partial
from math import prod
from pathlib import Path

from percov2_core.bitstream import MAX_FILE_BYTES, MAX_SEED
from percov2_core.cli.files import STANDARD, Output, add_output, read_stream, standard_input
from percov2_core.cli.terminal import GUIDANCE, SIDE, STEPS, Commands, Progress, add_model, within
from percov2_core.config import (
    DEFAULT_EFFORT,
    DEFAULT_SCHEDULE,
    EFFORTS,
    LEVELS,
    MAX_SIDE_PX,
    MODES,
    PRESETS,
    SCHEDULES,
)
from percov2_core.errors import ConfigError
from percov2_core.metrics import bits_per_pixel

# Those of `caption.captioner`, which would pull in torch if imported here, and the own text.
CAPTIONERS = ("auto", "describer", "blip", "fixed")

# All are lossless: another loss on top would be taken for the codec's.
PILLOW_FORMATS = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP", ".ppm": "PPM"}

_TOKENS = within(0, sum(prod(v.grid(MAX_SIDE_PX, MAX_SIDE_PX)) for v in LEVELS.values()))


def add_compress(commands: Commands) -> None:
    parser = commands.add_parser("compress", help="turn a picture into a .pcv2 file")
    add = parser.add_argument
    add("picture", metavar="IN", help="picture to read, - for standard input")
    add_output(parser, "file to write: .pcv2; - for standard output")
    add("--fit", type=SIDE, metavar="N", help="reduce a larger picture to N pixels, longest side")
    add("--mode", choices=MODES, help="how much is sent (default: extreme)")
    add("--tokens", type=_TOKENS, metavar="K", help="hybrid: tokens to send (default: 0)")
    add("--size", type=within(1, MAX_FILE_BYTES), metavar="N", help="instead: at most N bytes")
    add("--schedule", choices=SCHEDULES, default=DEFAULT_SCHEDULE, help="order of the tokens")
    add("--effort", choices=EFFORTS, default=DEFAULT_EFFORT, help="how long to look for tokens")
    add("--caption", metavar="TEXT", help="your own words for the picture (default: a captioner's)")
    add("--captioner", choices=CAPTIONERS, help="who describes the picture (default: the model's)")
    add_model(parser)
    parser.set_defaults(run=compress)


def compress(args: argparse.Namespace) -> None:
    if args.caption is None and args.captioner == "fixed":
        raise ConfigError("--captioner fixed: needs --caption TEXT, got none")
    if args.caption is not None and args.captioner not in (None, "fixed"):
        raise ConfigError(f"--caption: takes the place of --captioner {args.captioner}, got both")
    mode = args.mode or "extreme"
    if args.tokens is not None and not MODES[mode].partial:
        raise ConfigError(f"--tokens: needs --mode hybrid, got --mode {mode}")
    if args.size is not None and args.mode:
        raise ConfigError(f"--size: takes the place of --mode {args.mode}, got both")
    output = Output(args.output, args.force)
    output.check((".pcv2",), source=args.picture)
    # Loads Pillow, and not torch: a wrong picture is refused before anything takes seconds.
    from percov2_core import image_io

    source = standard_input() if args.picture == STANDARD else args.picture
    image = image_io.load(source, fit=args.fit)
    with Progress("compress") as line:
        from percov2_core.weights import load_codec

        names = ("caption", "schedule", "tokens", "size", "captioner", "effort")
        options = {name: getattr(args, name) for name in names}
        report = partial(setattr, line, "share")
        stream = load_codec(args.model).encode(image, mode=mode, progress=report, **options)
    data = stream.to_bytes()
    output.write(data)
    bpp = bits_per_pixel(len(data), image.width, image.height)
    output.report(f"{image.width}x{image.height}: {len(data)} bytes, {bpp:.5f} bpp")


def add_decompress(commands: Commands) -> None:
    parser = commands.add_parser("decompress", help="turn a .pcv2 file back into a picture")
    add = parser.add_argument
    add("stream", metavar="IN", help="file to read, - for standard input")
    add_output(parser, f"picture to write: {', '.join(PILLOW_FORMATS)}; - for standard output")
    add("--preset", choices=PRESETS, default="balanced", help="steps and guidance")
    add("--steps", type=STEPS, metavar="N", help="of the flow (default: preset's)")
    add("--guidance", type=GUIDANCE, metavar="G", help="1 is none (default: preset's)")
    add("--seed", type=within(0, MAX_SEED), metavar="S", help="of the noise (default: file's)")
    add_model(parser)
    parser.set_defaults(run=decompress)


def decompress(args: argparse.Namespace) -> None:
    output = Output(args.output, args.force)
    output.check(PILLOW_FORMATS, source=args.stream)
    stream = read_stream(args.stream)
    with Progress("decompress") as progress:
        # Loads torch, which takes seconds: only once the arguments and the file are known as good.
        from percov2_core.weights import load_codec

        codec = load_codec(args.model)
        manner = {"steps": args.steps, "guidance": args.guidance, "preset": args.preset}
        for step in codec.paint(codec.read(stream), seed=args.seed, **manner):
            progress.what = f"decompress, step {step.index} of {step.total}"
            progress.share = step.share
    image = step.picture
    assert image is not None
    buffer = io.BytesIO()
    image.save(buffer, PILLOW_FORMATS.get(Path(args.output).suffix.lower(), "PNG"))
    output.write(buffer.getvalue())
    output.report(f"{image.width}x{image.height} from {sum(stream.sizes)} bytes")


def add_inspect(commands: Commands) -> None:
    parser = commands.add_parser("inspect", help="show what a .pcv2 file holds and what it costs")
    parser.add_argument("stream", metavar="IN", help="file to read, - for standard input")
    parser.add_argument("--json", action="store_true", help="for programs")
    add_model(parser)
    parser.set_defaults(run=inspect)


def inspect(args: argparse.Namespace) -> None:
    stream = read_stream(args.stream)
    # Loads torch, which takes seconds, but no library of networks: nothing is painted.
    from percov2_core.weights import load_file_codec

    contents = load_file_codec(args.model).read(stream)
    size_bytes, bits = sum(stream.sizes), contents.bits._asdict()
    bpp = bits_per_pixel(size_bytes, stream.width, stream.height)
    if args.json:
        names = ("width", "height", "mode", "schedule", "tokens_sent")
        found = {name: getattr(stream, name) for name in names}
        found |= {"caption": contents.caption, "bytes": size_bytes, "bpp": bpp, "bits": bits}
        print(json.dumps(found))
        return
    print(f"size      {stream.width}x{stream.height}")
    print(f"mode      {stream.mode}")
    print(f"schedule  {stream.schedule}")
    for level, sent in stream.sent._asdict().items():
        print(f"{level:<10}{sent} of {getattr(stream.tokens_total, level)} tokens sent")
    # Quoted: a stranger's caption may hold characters that command a terminal.
    print(f"caption   {contents.caption!r}")
    for part, cost in bits.items():
        print(f"{part:<8}{cost:>7} bits")
    print(f"file    {8 * size_bytes:>7} bits = {size_bytes} bytes, {bpp:.5f} bpp")
