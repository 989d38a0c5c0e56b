"""`bench`: seconds of each box, peak memory, on one picture."""

from __future__ import annotations

import argparse
from pathlib import Path

from percov2_core.cli.common import Commands, add_model
from percov2_core.config import MODES

EXAMPLE = Path(__file__).parents[2] / "assets" / "examples" / "kodim23-parrots.jpg"


def add_parser(commands: Commands) -> None:
    parser = commands.add_parser("bench", help="time every box of encode and decode")
    parser.add_argument("picture", nargs="?", metavar="IN", default=EXAMPLE, help="picture to use")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["ultra-low", "extreme"])
    parser.add_argument("--steps", type=int, help="steps of the flow; default: the preset's")
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--side", type=int, default=512, help="crop to a square of this side, px")
    add_model(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    # Load torch, which takes seconds: only once the arguments are known to be good.
    import torch

    from percov2_core import image_io
    from percov2_core.evaluation.bench import bench
    from percov2_core.weights import load_codec

    if args.threads:
        torch.set_num_threads(args.threads)
    image = image_io.load(args.picture)
    image = image.crop((0, 0, min(args.side, image.width), min(args.side, image.height)))
    codec = load_codec(args.model)
    threads = torch.get_num_threads()
    print(f"{codec.name} on {codec.device}, {threads} threads, torch {torch.__version__}")
    for mode in args.modes:
        result = bench(
            codec, image, mode, repeats=args.repeats, steps=args.steps, guidance=args.guidance
        )
        whole = result.encode_s + result.decode_s
        print(f"\n{mode}, {image.width}x{image.height}, {result.size_bytes} bytes")
        print(f"  encode {result.encode_s:.3f} s, decode {result.decode_s:.3f} s (medians)")
        for box, seconds in result.boxes.items():
            print(f"  {box:<16}{seconds:8.3f} s {seconds / whole:7.1%}")
        print(f"  entropy coding together {result.entropy_share:.1%}")
        print(f"  peak memory {result.peak_bytes / 2**20:.0f} MiB")
