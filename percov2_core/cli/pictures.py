"""`compress`, `decompress`: pictures -> `.pcv2` files -> pictures. `inspect`: what one holds."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from percov2_core.bitstream import MAX_FILE_BYTES, MAX_SEED, SUFFIX, Stream
from percov2_core.cli import folders
from percov2_core.cli.files import (
    STANDARD,
    Output,
    add_output,
    read_settings,
    read_stream,
    standard_input,
)
from percov2_core.cli.terminal import GUIDANCE, SIDE, STEPS, Commands, Progress, add_model, within
from percov2_core.config import (
    CAPTIONERS,
    DEFAULT_EFFORT,
    DEFAULT_SCHEDULE,
    EFFORTS,
    MAX_TOKENS,
    MODES,
    OWN_PAINTER,
    PRESETS,
    SCHEDULES,
)
from percov2_core.errors import ConfigError
from percov2_core.evaluation import SUFFIXES
from percov2_core.metrics import bits_per_pixel
from percov2_core.run_settings import USUAL, RunSettings

if TYPE_CHECKING:
    from percov2_core.codec import PerCoV2

# All are lossless: another loss on top would be taken for the codec's.
PILLOW_FORMATS = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP", ".ppm": "PPM"}

_SETTINGS = "file of settings, JSON as the page shows it; other options come before it"
_ENCODING = ("fit", "mode", "tokens", "size", "schedule", "effort", "caption", "captioner")
_PAINTING = ("preset", "steps", "guidance", "seed")


def add_compress(commands: Commands) -> None:
    parser = commands.add_parser("compress", help="turn pictures into .pcv2 files")
    add = parser.add_argument
    what = "pictures and folders of them to read; - for standard input"
    add("inputs", nargs="+", metavar="IN", help=what)
    beside = "beside each: photo.jpg becomes photo.pcv2"
    add_output(parser, f"file or folder to write; - for standard output (default: {beside})")
    add("--fit", type=SIDE, metavar="N", help="reduce a larger picture to N pixels, longest side")
    add("--mode", choices=MODES, help="how much is sent (default: extreme)")
    add(
        "--tokens",
        type=within(0, MAX_TOKENS),
        metavar="K",
        help="hybrid: tokens to send (default: 0)",
    )
    add("--size", type=within(1, MAX_FILE_BYTES), metavar="N", help="instead: at most N bytes")
    order, long = f"(default: {DEFAULT_SCHEDULE})", f"(default: {DEFAULT_EFFORT})"
    add("--schedule", choices=SCHEDULES, help=f"order of the tokens {order}")
    add("--effort", choices=EFFORTS, help=f"how long to look for tokens {long}")
    add("--caption", metavar="TEXT", help="your own words for the picture (default: a captioner's)")
    add(
        "--captioner",
        choices=(*CAPTIONERS, "fixed"),
        help="who describes the picture (default: the model's)",
    )
    add("--settings", metavar="FILE", help=_SETTINGS)
    add_model(parser)
    _add_workers(parser)
    parser.set_defaults(run=compress, extra="ray")


def _add_workers(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("many files").add_argument
    count = "that work at a time (default: 1; of Ray, all CPUs)"
    add("--jobs", type=within(1, 1000), metavar="N", help=count)
    where = "local: processes of this machine; ray: a cluster's, or this machine's"
    add("--engine", choices=folders.ENGINES, default="local", help=where)


def compress(args: argparse.Namespace) -> None:
    if args.caption is None and args.captioner == "fixed":
        raise ConfigError("--captioner fixed: needs --caption TEXT, got none")
    if args.captioner == "fixed":
        args.captioner = None
    settings = _settings(args, _ENCODING)
    if _many(args):
        options = {"fit": settings.fit, **settings.encoding}
        _convert(args, to_file, options, SUFFIXES, SUFFIX)
        return
    (name,) = args.inputs
    output = _output(args, name, SUFFIX)
    output.check((SUFFIX,), source=name)
    # Loads Pillow, and not torch: a wrong picture is refused before anything takes seconds.
    from percov2_core import image_io

    source = standard_input() if name == STANDARD else name
    image = image_io.load(source, fit=settings.fit)
    with Progress("compress") as line:
        from percov2_core.weights import load_codec

        report = partial(setattr, line, "share")
        stream = load_codec(args.model).encode(image, progress=report, **settings.encoding)
    data = stream.to_bytes()
    output.write(data)
    bpp = bits_per_pixel(len(data), image.width, image.height)
    output.report(f"{image.width}x{image.height}: {len(data)} bytes, {bpp:.5f} bpp")


def to_file(codec: PerCoV2, data: bytes, options: Mapping[str, Any]) -> bytes:
    """A picture's file -> a `.pcv2` file; `options` are `fit` and those of `encode`."""
    from percov2_core import image_io

    rest = dict(options)
    return codec.encode(image_io.load(data, fit=rest.pop("fit")), **rest).to_bytes()


def add_decompress(commands: Commands) -> None:
    parser = commands.add_parser("decompress", help="turn .pcv2 files back into pictures")
    add = parser.add_argument
    what = "files and folders of them to read; - for standard input"
    add("inputs", nargs="+", metavar="IN", help=what)
    kinds = f"picture ({', '.join(PILLOW_FORMATS)}) or folder to write; - for standard output"
    add_output(parser, f"{kinds} (default: beside each: photo.pcv2 becomes photo.png)")
    add("--preset", choices=PRESETS, help="steps and guidance (default: balanced)")
    add("--steps", type=STEPS, metavar="N", help="of the flow (default: preset's)")
    add("--guidance", type=GUIDANCE, metavar="G", help="1 is none (default: preset's)")
    add("--seed", type=within(0, MAX_SEED), metavar="S", help="of the noise (default: file's)")
    add("--settings", metavar="FILE", help=_SETTINGS)
    who = "own, or who repaints: sd3-medium, sd3.5-medium, a folder in diffusers' layout"
    add("--painter", default=OWN_PAINTER, metavar="NAME_OR_DIR", help=who)
    kept = "0 to 1: how much another painter keeps (default: preset's, by size)"
    add("--fidelity", type=within(0.0, 1.0), metavar="F", help=kept)
    add_model(parser)
    _add_workers(parser)
    parser.set_defaults(run=decompress, extra="ray")


def decompress(args: argparse.Namespace) -> None:
    who = {"painter": args.painter, "fidelity": args.fidelity}
    manner = _settings(args, _PAINTING).painting | who
    if args.seed is not None:  # 0 as well, whatever the file says
        manner["seed"] = args.seed
    if _many(args):
        _convert(args, to_png, manner, (SUFFIX,), ".png")
        return
    (name,) = args.inputs
    output = _output(args, name, ".png")
    output.check(PILLOW_FORMATS, source=name)
    stream = read_stream(name)
    with Progress("decompress") as progress:
        # Loads torch, which takes seconds: only once the arguments and the file are known as good.
        from percov2_core.weights import load_codec

        codec = load_codec(args.model)
        for step in codec.paint(codec.read(stream), **manner):
            progress.what = f"decompress, step {step.index} of {step.total}"
            progress.share = step.share
    image = step.picture
    assert image is not None
    buffer = io.BytesIO()
    image.save(buffer, PILLOW_FORMATS.get(Path(output.name).suffix.lower(), "PNG"))
    output.write(buffer.getvalue())
    by = "" if args.painter == OWN_PAINTER else f", painted by {args.painter}"
    if by and not stream.tokens_sent:
        by += " from the caption alone"
    output.report(f"{image.width}x{image.height} from {sum(stream.sizes)} bytes{by}")


def _settings(args: argparse.Namespace, names: Sequence[str]) -> RunSettings:
    """The file's settings, replaced by the options that were given."""
    found = read_settings(args.settings) if args.settings else USUAL
    return found.replaced({name: getattr(args, name) for name in names})


def to_png(codec: PerCoV2, data: bytes, options: Mapping[str, Any]) -> bytes:
    """A `.pcv2` file -> a PNG; `options` are those of `decode`."""
    buffer = io.BytesIO()
    codec.decode(Stream.from_bytes(data), **options).save(buffer, "PNG")
    return buffer.getvalue()


def _many(args: argparse.Namespace) -> bool:
    """False if it is one picture of this machine, or standard input.
    ConfigError if standard input or output is asked for otherwise."""
    output, source = args.output, args.inputs[0]
    if len(args.inputs) == 1 and not args.skip_existing:
        from_one = source == STANDARD or not folders.is_folder(source)
        if from_one and (output in (None, STANDARD) or not folders.is_folder(output)):
            return False
    if STANDARD in (*args.inputs, output):
        raise ConfigError(f"{STANDARD}: stands for one picture, without --skip-existing")
    return True


def _output(args: argparse.Namespace, name: str, suffix: str) -> Output:
    """Where one picture goes."""
    if args.output is None and name == STANDARD:
        raise ConfigError("output: -o OUT is needed for standard input")
    return Output(args.output or folders.beside(name, suffix), args.force)


def _convert(
    args: argparse.Namespace,
    function: folders.Convert,
    options: Mapping[str, Any],
    suffixes: tuple[str, ...],
    suffix: str,
) -> None:
    work = folders.Work(convert=function, options=options, model=args.model, force=args.force)
    folders.convert(
        folders.find(args.inputs, suffixes),
        work,
        suffix=suffix,
        output=args.output,
        skip=args.skip_existing,
        engine=args.engine,
        workers=args.jobs,
    )


def add_inspect(commands: Commands) -> None:
    parser = commands.add_parser("inspect", help="show what a .pcv2 file holds and what it costs")
    parser.add_argument("stream", metavar="IN", help="file to read, - for standard input")
    parser.add_argument("--json", action="store_true", help="for programs")
    add_model(parser)
    parser.set_defaults(run=inspect)


def inspect(args: argparse.Namespace) -> None:
    stream = read_stream(args.stream)
    # Loads NumPy and the entropy models, but no library of networks: nothing is painted.
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
