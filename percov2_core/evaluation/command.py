"""The command `evaluate`: codecs x settings x pictures -> rows, a summary and a report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from percov2_core.config import DEFAULT_SCHEDULE, MODES, PRESETS, SCHEDULES
from percov2_core.errors import ImageError
from percov2_core.metrics import METRICS

if TYPE_CHECKING:
    import pandas as pd

    from percov2_core.evaluation.protocol import Picture
    from percov2_core.evaluation.settings import Setting

SET_METRICS = ("set_swd", "fid", "kid")

# (rows, output folder, pictures, notes) -> the page; figures are made above this layer.
Report = Callable[["pd.DataFrame", Path, "list[Picture]", list[str]], Path]

_DESCRIPTION = """
Codecs are jpeg, jpeg2000, j2k, webp, avif, jxl and vvc; avif/4 is at a quarter of the size,
vvc@56+60 at those qualities, and `all` stands for every one at full and half size. Finished rows
in OUT are not repeated: start the same command again after an interruption, or with other
settings to add them. Under `accelerate launch` the work is shared out over the processes.
"""


def add_parser(commands: Any, *, report: Report) -> None:
    """Register the command; `report` writes the page."""
    parser = commands.add_parser(
        "evaluate", help="measure codecs on a folder of pictures", description=_DESCRIPTION
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
    parser.set_defaults(run=lambda args: run(args, report=report))


def add_machine(parser: argparse.ArgumentParser) -> None:
    """What a study takes as well: the model, the machine, and how many pictures."""
    parser.add_argument("--limit", type=at_least_one, metavar="N", help="only the first N pictures")
    parser.add_argument("--model", default="embedded", metavar="NAME_OR_DIR", help="of our codec")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, or auto (one GPU per process)")
    parser.add_argument(
        "--processes", type=at_least_one, default=1, metavar="N", help="that share the work"
    )


def at_least_one(text: str) -> int:
    """A count on the command line; argparse puts the option before the error."""
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def build_settings(args: argparse.Namespace) -> list[Setting]:
    """What the command line asks for; every codec and mode if it names none.
    ConfigError if a codec, a quality or a name does not exist."""
    from percov2_core.evaluation.settings import budget_settings, classic_settings, our_settings

    nothing = not args.codecs and not args.modes
    codecs, modes = (["all"], list(MODES)) if nothing else (args.codecs, args.modes)
    classic = budget_settings(codecs, args.budgets) if args.budgets else classic_settings(codecs)
    points = {"presets": args.presets, "steps": args.steps, "guidance": args.guidance}
    return classic + our_settings(modes, **points, schedules=args.schedules, tokens=args.tokens)


def run(args: argparse.Namespace, *, report: Report) -> None:
    """Evaluate, print the summary and write the report.
    ImageError if a picture could not be measured; the others were."""
    # Here and not at the top: the command line must start without torch and pandas.
    from percov2_core.evaluation.judge import Judge, compare_sets
    from percov2_core.evaluation.protocol import find_pictures
    from percov2_core.evaluation.rows import summarise, write_tables
    from percov2_core.evaluation.runner import Plan, evaluate

    settings = build_settings(args)
    pictures = find_pictures(args.data, square=not args.native)[: args.limit]
    sets = [name for name in args.metrics if name in SET_METRICS]
    plan = Plan(
        out=args.out,
        data=args.data,
        model=args.model,
        device=args.device,
        metrics=tuple(name for name in args.metrics if name in METRICS),
        keep=bool(sets),
    )
    notes = [f"{k}: {why}" for k, why in Judge(plan.metrics).unavailable.items()]
    frame = evaluate(pictures, settings, plan, processes=args.processes)
    table = summarise(frame)
    wanted = ("key", "pictures", "errors", "size_bytes", "bpp", *METRICS, "decode_s")
    short = table[[name for name in wanted if name in table]].round(4)
    print(short.to_string(index=False, na_rep="-"))
    if sets:
        table = compare_sets(frame, pictures, args.out, names=sets)
        write_tables(table, args.out, stem="sets")
        print(table.to_string(index=False, na_rep="-"))
    for note in notes:
        print(note)
    print(f"report: {report(frame, args.out, pictures, notes)}")
    name_failures(frame)


def name_failures(frame: pd.DataFrame) -> None:
    """Print every picture that could not be measured, and why; ImageError if there is one."""
    from percov2_core.evaluation.rows import UNMET

    # That a codec cannot be so small is a result.
    wrong = frame[frame["error"].notna()]
    wrong = wrong[~wrong["error"].astype(str).str.contains(UNMET, regex=False)]
    for (picture, error), rows in wrong.groupby(["picture", "error"]):
        many = f" ({len(rows)} settings)" if len(rows) > 1 else f" ({rows['key'].item()})"
        print(f"{picture}: {error}{many}", file=sys.stderr)
    if len(wrong):
        count, total = wrong["picture"].nunique(), frame["picture"].nunique()
        raise ImageError(f"{count} of {total} pictures could not be measured in full, see above")
