"""`weights`: what of a model is here, how large it is, where it would go, and what is missing."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from percov2_core.cli.common import Commands, add_model

if TYPE_CHECKING:
    from percov2_core.weights.inventory import Part


def add_parser(commands: Commands) -> None:
    parser = commands.add_parser("weights", help="tell what of a model is here, and fetch it")
    add_model(parser)
    parser.add_argument("--download", action="store_true", help="fetch what is missing first")
    parser.add_argument(
        "--upload", metavar="OWNER/NAME", help="send the model's folder to a Hub repository"
    )
    parser.add_argument("--device", help="cpu or cuda; the default takes a GPU if there is one")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    # Loads torch, which takes seconds: only once the arguments are known to be good.
    from percov2_core.weights.about import read_about
    from percov2_core.weights.hub import upload
    from percov2_core.weights.inventory import fetch, inventory, next_step
    from percov2_core.weights.places import find_model
    from percov2_core.weights.residency import Residency

    home = Residency.from_environment(device=args.device)
    if args.download:
        fetch(args.model, home)
    if args.upload:
        folder = find_model(args.model)
        read_about(folder)
        print(f"sent to {upload(folder, args.upload)}")
    parts = inventory(args.model, home)
    print(f"{args.model}, {str(home.precision).removeprefix('torch.')} on {home.target}")
    for part in parts:
        print(_line(part))
    print(f"{'together':<16}{_size(sum(part.size_bytes for part in parts)):>10}")
    if hint := next_step(args.model, parts):
        print(hint)


def _line(part: Part) -> str:
    size = "missing" if part.problem else _size(part.size_bytes)
    return f"{part.name:<16}{size:>10}  {part.device:<18}  {part.problem or part.place}"


def _size(size_bytes: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.2f} {unit}"
    return f"{size_bytes / 1e3:.1f} kB"
