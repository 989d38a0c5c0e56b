"""The studies behind the README and the demo, one command each:

    python -m percov2_core.evaluation.studies NAME --data KODAK -o assets/results

writes `NAME.csv` (a row per picture) and `NAME.json` (means, and the command that made them).
An interrupted study goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from percov2_core.baselines import CLASSIC
from percov2_core.config import EFFORTS, MODES, PRESETS, SCHEDULES
from percov2_core.errors import PerCoError
from percov2_core.evaluation import add_machine
from percov2_core.evaluation import settings as ways
from percov2_core.evaluation.protocol import find_pictures
from percov2_core.evaluation.rows import name_failures, summarise
from percov2_core.evaluation.runner import Plan, evaluate
from percov2_core.evaluation.settings import Setting
from percov2_core.hyper.stand_ins import STAND_INS
from percov2_core.metrics import METRICS

_VVC = "vvc@63+60+56+52+48"
# The rows of the protocol's published table, to check an installation against.
PROTOCOL = ("jpeg@1+10", "webp@0", "avif@0", "avif/2@0", "avif/4@0", "jpeg2000@800", _VVC)
BUDGET_CODECS = ("jpeg", "j2k", "webp", "jxl", "avif", "vvc")
BUDGETS_BYTES = (62, 124, 240, 430, 722)
# Between a caption and a whole file at 512 x 512, close enough for a curve.
SIZES_BYTES = (24, 32, 46, 62, 90, 124, 170, 240, 320, 430, 560, 722)
ORDERS_BYTES = (100, 200, 400)
PARTS_BYTES = BUDGETS_BYTES[:-1]  # of which no file holds all tokens


class Study(NamedTuple):
    """What a study runs."""

    about: str  # for `--help` and the JSON
    settings: Callable[[argparse.Namespace], list[Setting]]  # from the parsed command line
    metrics: tuple[str, ...] = METRICS


def _schedules(args: argparse.Namespace) -> list[Setting]:
    modes = [mode for mode in args.modes if not MODES[mode].partial]
    return ways.our_settings(modes, steps=(1,), guidance=(1.0,), schedules=SCHEDULES)


STUDIES = {
    "protocol": Study(
        "classic codecs at the settings of the protocol's table",
        lambda args: ways.classic_settings(PROTOCOL),
    ),
    "classic": Study(
        "the best that each classic codec does in N bytes, over all reduced sizes",
        lambda args: ways.budget_settings(args.codecs, args.budgets),
    ),
    "presets": Study(
        "our modes at their presets", lambda args: ways.our_settings(args.modes, presets=PRESETS)
    ),
    "sweep": Study(
        "distortion against perception: steps x guidance per mode",
        lambda args: ways.our_settings(args.modes, steps=args.steps, guidance=args.guidance),
    ),
    "schedules": Study("bits of the tokens under each schedule", _schedules, ("psnr",)),
    "orders": Study(
        "which fine tokens to send first: our files of N bytes under each schedule",
        lambda args: ways.our_settings(["hybrid"], schedules=SCHEDULES, budgets=ORDERS_BYTES),
    ),
    "stand-ins": Study(
        "what stands for fine tokens that were not sent",
        lambda args: ways.our_settings(
            ["hybrid"], presets=PRESETS[::2], budgets=PARTS_BYTES, stand_ins=tuple(STAND_INS)
        ),
    ),
    "effort": Study(
        "what the encoder's search for tokens gains",
        lambda args: [
            *ways.our_settings(["extreme"], presets=PRESETS[::2], efforts=EFFORTS),
            *ways.our_settings(
                ["hybrid"], presets=PRESETS[::2], efforts=EFFORTS, budgets=PARTS_BYTES
            ),
        ],
    ),
    "sizes": Study(
        "our files of N bytes, all cut from one encoding",
        lambda args: ways.our_settings(["hybrid"], presets=PRESETS[::2], budgets=SIZES_BYTES),
    ),
}


def run_study(name: str, args: argparse.Namespace) -> pd.DataFrame:
    """Run one study and write its files into `args.out`; ConfigError if it has no pictures."""
    study = STUDIES[name]
    pictures = find_pictures(args.data)[: args.limit]
    plan = Plan(
        out=args.work / name,
        data=args.data,
        model=args.model,
        device=args.device,
        metrics=study.metrics,
        thumbnails=False,
    )
    if args.fresh:
        shutil.rmtree(plan.out, ignore_errors=True)
    settings = study.settings(args)
    frame = evaluate(pictures, settings, plan, processes=args.processes)
    frame = frame[frame["key"].isin({s.key for s in settings})]
    _write(frame, study, args.out / name, command=_command(name, args))
    return frame


def _command(name: str, args: argparse.Namespace) -> str:
    """The command line that gives the same rows, without this machine's paths."""
    words = ["python -m percov2_core.evaluation.studies", name, "--data KODAK"]
    for option in ("modes", "steps", "guidance", "codecs", "budgets", "limit"):
        value = getattr(args, option)
        if value != build_parser().get_default(option):
            words += [f"--{option}", *map(str, value if isinstance(value, list) else [value])]
    return " ".join(words)


def _write(frame: pd.DataFrame, study: Study, path: Path, *, command: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Seconds say more about the machine and its other work than about a codec: see `bench`.
    frame = frame.drop(columns=["thumbnail", "encode_s", "decode_s"])
    full = frame.dropna(axis=1, how="all")
    full.to_csv(path.with_suffix(".csv"), index=False, float_format="%.6g")
    table = summarise(frame)
    if "deflate_bits" in frame:
        table["deflate_bits"] = table["key"].map(frame.groupby("key")["deflate_bits"].mean())
    report = {
        "about": study.about,
        "command": command,
        "pictures": int(frame["picture"].nunique()),
        "descriptions": sorted({d.split("; at 1/")[0] for d in frame["description"].dropna()}),
        "means": json.loads(table.to_json(orient="records", double_precision=6)),
    }
    text = json.dumps(report, indent=1, ensure_ascii=False)
    path.with_suffix(".json").write_text(text + "\n", encoding="utf-8")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m percov2_core.evaluation.studies",
        epilog="; ".join(f"{name}: {study.about}" for name, study in STUDIES.items()),
    )
    add = parser.add_argument
    add("names", nargs="+", choices=sorted(STUDIES), metavar="NAME")
    add("--data", type=Path, required=True, help="folder of pictures")
    add("-o", "--out", type=Path, default=Path("assets/results"))
    add("--work", type=Path, default=Path("runs/studies"), help="unfinished rows")
    add("--fresh", action="store_true", help="forget unfinished rows")
    add_machine(parser)
    add("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    add("--steps", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    add("--guidance", nargs="+", type=float, default=[1.0, 1.5, 2.5, 4.0])
    add("--codecs", nargs="+", default=list(BUDGET_CODECS), choices=CLASSIC, help="classic only")
    add("--budgets", nargs="+", type=int, default=list(BUDGETS_BYTES))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        frames = []
        for name in args.names:
            frames.append(run_study(name, args))
            print(summarise(frames[-1]).to_string(index=False))
        name_failures(pd.concat(frames))
    except (PerCoError, OSError) as error:
        print(f"studies: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
