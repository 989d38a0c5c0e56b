"""`bench`: seconds of each box, peak memory, and how well the sampling loop uses the machine."""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

from percov2_core.cli.common import Commands
from percov2_core.config import MAX_SIDE_PX, MIN_SIDE_PX, MODES
from percov2_core.errors import ConfigError

EXAMPLE = Path(__file__).parents[2] / "assets" / "examples" / "kodim23-parrots.jpg"


def add_parser(commands: Commands) -> None:
    parser = commands.add_parser("bench", help="time every box of encode and decode")
    parser.add_argument("picture", nargs="?", metavar="IN", default=EXAMPLE, help="picture to use")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["ultra-low", "extreme"])
    parser.add_argument(
        "--size", nargs="+", type=int, default=[512], help="sides of the square, px"
    )
    parser.add_argument("--steps", nargs="+", type=int, help="of the flow; default: the preset's")
    parser.add_argument("--guidance", nargs="+", type=float, help="default: the preset's")
    parser.add_argument("--batch", nargs="+", type=int, default=[1], help="pictures in the loop")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--device", help="cpu or cuda; the default takes a GPU if there is one")
    parser.add_argument(
        "--random-weights",
        action="store_true",
        help="build the model at its published size with random weights: no download",
    )
    parser.add_argument("--no-t5", action="store_true", help="leave out the third text encoder")
    parser.add_argument("--note", default="", help="for the table: what else ran, say")
    parser.add_argument("--out", type=Path, help="folder to add the rows to, as bench.csv and .md")
    parser.add_argument(
        "--model",
        default="embedded",
        metavar="NAME_OR_DIR",
        help="name of a model or its folder; tiny-random is the large one's code at toy size",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    _check(args)
    # Load torch, which takes seconds: only once the arguments are known to be good.
    import torch

    from percov2_core import image_io
    from percov2_core.evaluation.bench import measure
    from percov2_core.evaluation.bench.rows import write

    if args.threads:
        torch.set_num_threads(args.threads)
    image = image_io.load(args.picture)
    codec = measure.open_codec(
        args.model, random=args.random_weights, t5=not args.no_t5, device=args.device
    )
    random = args.random_weights or args.model == measure.TINY_RANDOM
    machine = measure.describe(codec, random=random, note=args.note)
    print(measure.headline(machine))
    rows = []
    for size, mode, batch in product(args.size, args.modes, args.batch):
        for point in measure.points(codec, mode, size, batch, args.steps, args.guidance):
            rows.append(measure.measure(codec, machine, point, image, repeats=args.repeats))
            print(measure.as_text(rows[-1]))
    if args.out:
        write(rows, args.out)


def _check(args: argparse.Namespace) -> None:
    for size in args.size:
        if not MIN_SIDE_PX <= size <= MAX_SIDE_PX:
            raise ConfigError(f"--size must be in [{MIN_SIDE_PX}, {MAX_SIDE_PX}], got {size}")
    for name in ("batch", "repeats", "threads"):
        values = getattr(args, name)
        for value in values if isinstance(values, list) else [values]:
            if value is not None and value < 1:
                raise ConfigError(f"--{name} must be at least 1, got {value}")
