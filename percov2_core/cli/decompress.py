"""`decompress`: a `.pcv2` file -> a picture."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import TYPE_CHECKING

from percov2_core.cli.common import (
    STANDARD,
    Commands,
    add_model,
    check_output,
    read_stream,
    report,
    seed,
    write_bytes,
)
from percov2_core.config import PRESETS
from percov2_core.errors import ConfigError

if TYPE_CHECKING:
    from percov2_core.codec import Step

# All are lossless: another loss on top would be taken for the codec's.
PILLOW_FORMATS = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP", ".ppm": "PPM"}


def add_parser(commands: Commands) -> None:
    parser = commands.add_parser("decompress", help="turn a .pcv2 file back into a picture")
    parser.add_argument("stream", metavar="IN", help="file to read, - for standard input")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="picture to write")
    parser.add_argument("--steps", type=int, metavar="N", help="of the flow (default: preset's)")
    parser.add_argument("--guidance", type=float, metavar="G", help="1 is none (default: preset's)")
    parser.add_argument("--preset", choices=PRESETS, default="balanced")
    parser.add_argument("--seed", type=seed, metavar="S", help="of the noise (default: file's)")
    add_model(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    kind = _format(args.output)
    check_output(args.output)
    stream = read_stream(args.stream)
    # These take seconds to load: only once the arguments and the file are known to be good.
    from tqdm import tqdm

    from percov2_core.weights import load_codec

    codec = load_codec(args.model)
    # `disable=None`: only on a terminal.
    with tqdm(desc="decompress", unit="step", leave=False, disable=None) as bar:

        def show(step: Step) -> None:
            bar.total = step.total
            bar.update(step.index - bar.n)

        image = codec.decode(
            stream,
            steps=args.steps,
            guidance=args.guidance,
            preset=args.preset,
            seed=args.seed,
            on_step=show,
        )
    buffer = io.BytesIO()
    image.save(buffer, kind)
    write_bytes(args.output, buffer.getvalue())
    report(f"{image.width}x{image.height} from {sum(stream.sizes)} bytes", output=args.output)


def _format(output: str) -> str:
    """What Pillow calls the format that the name of the output asks for."""
    if output == STANDARD:
        return "PNG"
    suffix = Path(output).suffix.lower()
    if suffix not in PILLOW_FORMATS:
        raise ConfigError(f"output: must end in {', '.join(PILLOW_FORMATS)}, got {output!r}")
    return PILLOW_FORMATS[suffix]
