"""`evaluate`: codecs on a folder of pictures. `bench`: seconds of each box, and peak memory."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from percov2_core.cli.terminal import GUIDANCE, SIDE, STEPS, Commands, add_device, add_model, within
from percov2_core.config import (
    DEFAULT_EFFORT,
    DEFAULT_SCHEDULE,
    EFFORTS,
    MODES,
    OWN_PAINTER,
    PRESETS,
    SCHEDULES,
)
from percov2_core.errors import ConfigError
from percov2_core.evaluation import add_machine
from percov2_core.metrics import METRICS, STAR, STAR_NOTE, STARRED

EXAMPLE = Path(__file__).parents[2] / "assets" / "examples" / "kodim23-parrots.jpg"
SET_METRICS = ("set_swd", "fid", "kid")
_COUNT = within(1, 1000)
_EVALUATE = """
Codecs are jpeg, jpeg2000, j2k, webp, avif, jxl and vvc; avif/4 is at a quarter of the size,
vvc@56+60 at those qualities, and `all` stands for every one at full and half size. Finished rows
in OUT are not repeated: start the same command again after an interruption, or with other
settings to add them. Under `accelerate launch` the work is shared out over the processes.
"""


def add_bench(commands: Commands) -> None:
    parser = commands.add_parser("bench", help="time every box of encode and decode")
    add = parser.add_argument
    add("picture", nargs="?", metavar="IN", help="to use (default: an example of the repository)")
    add("--modes", nargs="+", choices=MODES, default=["ultra-low", "extreme"], help="to time")
    add("--effort", nargs="+", choices=EFFORTS, default=[DEFAULT_EFFORT], help="of the encoder")
    add("--size", nargs="+", type=_size, default=["512x512"], help="a side or WxH, px")
    add("--steps", nargs="+", type=STEPS, help="of the flow (default: the preset's)")
    add("--guidance", nargs="+", type=GUIDANCE, help="1 is none (default: the preset's)")
    add("--batch", nargs="+", type=_COUNT, default=[1], help="pictures in the loop")
    add("--repeats", type=_COUNT, default=5, help="of each measurement")
    add("--threads", type=_COUNT, help="of torch, and cores to run on (default: all)")
    add("--no-rivals", action="store_true", help="without AVIF, VVC, JPEG XL, WebP")
    add_device(parser)
    add("--random-weights", action="store_true", help="published size, no download")
    who = "own, or a second one: sd3-medium, sd3.5-medium, a folder; --random-weights is then its"
    add("--painter", default=OWN_PAINTER, metavar="NAME_OR_DIR", help=who)
    add("--no-t5", action="store_true", help="leave out the third text encoder")
    add("--note", default="", help="for the table: what else ran, say")
    add("--out", type=Path, help="folder to add the rows to, as bench.csv and .md")
    add_model(parser, more=", tiny-random (the large one's code at toy size)")
    parser.set_defaults(run=run_bench, extra="evaluate")


def _size(text: str) -> str:
    """An argparse type: `512` or `2048x1536` -> width x height."""
    width, cross, height = text.partition("x")
    return f"{SIDE(width)}x{SIDE(height if cross else width)}"


def run_bench(args: argparse.Namespace) -> None:
    if not args.picture and not EXAMPLE.exists():
        raise ConfigError("bench: needs a picture to use; the example is in the repository alone")
    if hasattr(os, "sched_setaffinity"):  # before other threads start
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    from percov2_core import image_io

    image = image_io.load(args.picture or EXAMPLE)
    # Load torch, which takes seconds: only once the picture is known to be one.
    import torch

    from percov2_core.evaluation import bench, bench_table

    if args.threads:
        torch.set_num_threads(args.threads)
    codec = bench.open_codec(args)
    for row in bench.rows(codec, image, args):
        print(bench_table.as_text(row), flush=True)
        if args.out:
            bench_table.write([row], args.out)


def add_evaluate(commands: Commands) -> None:
    parser = commands.add_parser(
        "evaluate", help="measure codecs on a folder of pictures", description=_EVALUATE
    )
    add = parser.add_argument
    add("data", type=Path, metavar="DIR", help="folder of pictures")
    add("-o", "--out", type=Path, required=True, metavar="OUT", help="folder of results")
    add("--codecs", nargs="+", default=[], metavar="CODEC", help="classic ones")
    budgets = "the best that each of --codecs does in so many bytes, over all sizes"
    add("--budgets", nargs="+", type=int, default=[], metavar="BYTES", help=budgets)
    add("--modes", nargs="+", default=[], choices=list(MODES), help="of our codec")
    add("--presets", nargs="+", default=[], choices=PRESETS, help="steps and guidance")
    add("--steps", nargs="+", type=int, default=[], help="of the flow")
    add("--guidance", nargs="+", type=float, default=[], help="1 is none")
    order = "of the tokens"
    add("--schedules", nargs="+", default=[DEFAULT_SCHEDULE], choices=SCHEDULES, help=order)
    add("--tokens", nargs="+", type=int, default=[], metavar="K", help="hybrid: tokens sent")
    known = (*METRICS, *SET_METRICS)
    add("--metrics", nargs="+", choices=known, default=list(METRICS), help="to compute")
    add("--native", action="store_true", help="native size, not 512 x 512")
    add_machine(parser)
    parser.set_defaults(run=run_evaluate, extra="evaluate")


def run_evaluate(args: argparse.Namespace) -> None:
    """Evaluate, print the summary and write rows and report; every codec and mode if none is named.
    ImageError if a picture could not be measured; the others were."""
    # Here and not at the top: the command line must start without torch, pandas and Plotly.
    from percov2_core.evaluation.judge import Judge, compare_sets
    from percov2_core.evaluation.protocol import find_pictures
    from percov2_core.evaluation.rows import name_failures, summarise, write_tables
    from percov2_core.evaluation.runner import Plan, evaluate
    from percov2_core.evaluation.settings import budget_settings, classic_settings, our_settings
    from percov2_core.plots import write_report

    nothing = not args.codecs and not args.modes
    codecs, modes = (["all"], list(MODES)) if nothing else (args.codecs, args.modes)
    settings = budget_settings(codecs, args.budgets) if args.budgets else classic_settings(codecs)
    points = {"presets": args.presets, "steps": args.steps, "guidance": args.guidance}
    settings += our_settings(modes, **points, schedules=args.schedules, tokens=args.tokens)
    pictures = find_pictures(args.data, square=not args.native)[: args.limit]
    sets = [name for name in args.metrics if name in SET_METRICS]
    metrics = tuple(name for name in args.metrics if name in METRICS)
    places = {"out": args.out, "data": args.data, "model": args.model, "device": args.device}
    plan = Plan(**places, metrics=metrics, keep=bool(sets))
    notes = [f"{k}: {why}" for k, why in Judge(metrics).unavailable.items()]
    frame = evaluate(pictures, settings, plan, processes=args.processes)
    table = summarise(frame)
    shown = ("key", "pictures", "errors", "size_bytes", "bpp", *METRICS, "decode_s")
    short = table[[name for name in shown if name in table]].round(4)
    print(short.rename(columns=STARRED).to_string(index=False, na_rep="-"))
    notes.append(f"{STAR} {STAR_NOTE}")
    if sets:
        table = compare_sets(frame, pictures, args.out, names=sets)
        write_tables(table, args.out, stem="sets")
        print(table.to_string(index=False, na_rep="-"))
    for note in notes:
        print(note)
    print(f"report: {write_report(frame, args.out, pictures, notes)}")
    name_failures(frame)
