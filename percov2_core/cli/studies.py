"""`evaluate`: codecs on a folder of pictures. `bench`: seconds of each box, and peak memory."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from percov2_core.cli.terminal import GUIDANCE, SIDE, STEPS, Commands, add_device, add_model, within
from percov2_core.config import MODES
from percov2_core.errors import ConfigError
from percov2_core.evaluation import command

EXAMPLE = Path(__file__).parents[2] / "assets" / "examples" / "kodim23-parrots.jpg"
_COUNT = within(1, 1000)


def add_bench(commands: Commands) -> None:
    parser = commands.add_parser("bench", help="time every box of encode and decode")
    add = parser.add_argument
    add("picture", nargs="?", metavar="IN", help="to use (default: an example of the repository)")
    add("--modes", nargs="+", choices=MODES, default=["ultra-low", "extreme"], help="to time")
    add("--size", nargs="+", type=SIDE, default=[512], help="sides of the square, px")
    add("--steps", nargs="+", type=STEPS, help="of the flow (default: the preset's)")
    add("--guidance", nargs="+", type=GUIDANCE, help="1 is none (default: the preset's)")
    add("--batch", nargs="+", type=_COUNT, default=[1], help="pictures in the loop")
    add("--repeats", type=_COUNT, default=5, help="of each measurement")
    add("--threads", type=_COUNT, help="threads of torch (default: one a core)")
    add_device(parser)
    add("--random-weights", action="store_true", help="published size, no download")
    add("--no-t5", action="store_true", help="leave out the third text encoder")
    add("--note", default="", help="for the table: what else ran, say")
    add("--out", type=Path, help="folder to add the rows to, as bench.csv and .md")
    add_model(parser, more=", tiny-random (the large one's code at toy size)")
    parser.set_defaults(run=run_bench, extra="evaluate")


def run_bench(args: argparse.Namespace) -> None:
    picture = args.picture or EXAMPLE
    if not args.picture and not EXAMPLE.exists():
        raise ConfigError("bench: needs a picture to use; the example is in the repository alone")
    from percov2_core import image_io

    image = image_io.load(picture)
    # Load torch, which takes seconds: only once the picture is known to be one.
    import torch

    from percov2_core.evaluation import bench
    from percov2_core.evaluation.bench_table import BenchRow, as_text, headline, write

    if args.threads:
        torch.set_num_threads(args.threads)
    codec = bench.open_codec(
        args.model, random=args.random_weights, t5=not args.no_t5, device=args.device
    )
    rows: list[BenchRow] = []
    for point in bench.points(
        codec,
        random=args.random_weights or args.model == bench.TINY_RANDOM,
        note=args.note,
        sizes=args.size,
        modes=args.modes,
        batches=args.batch,
        steps=args.steps,
        guidance=args.guidance,
    ):
        if not rows:
            print(headline(point))
        rows.append(bench.measure(codec, point, image, repeats=args.repeats))
        print(as_text(rows[-1]))
    if args.out:
        write(rows, args.out)


def add_evaluate(commands: Commands) -> None:
    command.add_parser(commands, report=_report)
    commands.choices["evaluate"].set_defaults(extra="evaluate")


def _report(*results: Any) -> Path:
    # Plotly is heavy, and only this command draws.
    from percov2_core.plots import write_report

    return write_report(*results)
