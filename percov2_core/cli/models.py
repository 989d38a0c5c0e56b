"""`train`: one stage of training. `weights`: what of a model is here, and what is missing.
`deploy`: the demo as a hosted Space, as the Spacefile says.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

from percov2_core.cli.terminal import Commands, add_device, add_model
from percov2_core.config import LEVELS

# The names of `training.recipes.STAGES`; importing them from there would pull in torch.
_MASKED = tuple(f"masked-{level}" for level in LEVELS)
STAGES = ("autoencoder", "tokens", *_MASKED, "painter", "surrogate", "caption", "cache")


def add_train(commands: Commands) -> None:
    parser = commands.add_parser("train", help="train one stage of a model")
    add = parser.add_argument
    add("stage", choices=STAGES, metavar="STAGE", help=", ".join(STAGES))
    add("--data", type=Path, help="folder of photos")
    add("--out", type=Path, required=True, help="folder of this run")
    add("--minutes", type=float, help="wall-clock length of the run")
    add("--steps", type=int, help="length in steps instead, for repeatable runs")
    add("--resume", action="store_true", help="go on from the checkpoint in --out")
    add_device(parser)
    add("--config", type=Path, help="recipe, a JSON file of settings")
    add("--vae", type=Path, help="folder of the trained autoencoder")
    add("--parts", type=Path, help="masked-*, painter: folder of the levels and the painter")
    add("--init", type=Path, help="folder of a run of this stage to start from")
    add("--perceptual", type=Path, help="SqueezeNet weights for the loss")
    add("--pictures", type=Path, help="folder of pictures to score on")
    add("--captions", type=Path, help="caption: captions, one a line, gzipped")
    add = parser.add_argument_group("over Stable Diffusion 3").add_argument
    add("--model", metavar="BASE[:DIR]", help="sd3-medium or sd3.5-medium, and the model folder")
    add("--cache", type=Path, help="folder that the stage cache wrote")
    add("--captioner", default="auto", help="cache: who writes the captions")
    add("--no-t5", action="store_true", help="cache: without the third text encoder")
    add("--lora-rank", type=int, help="of a new model's difference, 0 for a full one (default: 64)")
    parser.set_defaults(run=train, extra="train")


def train(args: argparse.Namespace) -> None:
    # Loads torch, which takes seconds: only once the arguments are known to be good.
    from percov2_core.training import recipes

    said = {name: value for name, value in vars(args).items() if hasattr(recipes.RunOptions, name)}
    options = recipes.RunOptions(**said, recipe=recipes.read_recipe(args.config), t5=not args.no_t5)
    recipes.STAGES[args.stage](options)


def add_weights(commands: Commands) -> None:
    parser = commands.add_parser("weights", help="tell what of a model is here, and fetch it")
    add = parser.add_argument
    add_model(parser)
    add("--download", action="store_true", help="fetch what is missing first")
    add("--upload", metavar="OWNER/NAME", help="send the model's folder to a Hub repository")
    add_device(parser)
    parser.set_defaults(run=weights, extra="hub")


def weights(args: argparse.Namespace) -> None:
    # Loads torch, which takes seconds: only once the arguments are known to be good.
    from percov2_core.weights.files import read_about
    from percov2_core.weights.find import base_of, fetch, find_model, inventory, next_step
    from percov2_core.weights.hub import upload
    from percov2_core.weights.residency import Residency

    home = Residency.from_environment(device=args.device)
    if args.download:
        fetch(args.model, home)
    if args.upload or not base_of(args.model):  # then it is a folder, or nothing
        read_about(folder := find_model(args.model))
    if args.upload:
        print(f"sent to {upload(folder, args.upload)}")
    parts = inventory(args.model, home)
    print(f"{args.model}, {str(home.precision).removeprefix('torch.')} on {home.target}")
    for part in parts:
        size = "missing" if part.problem else _size(part.size_bytes)
        print(f"{part.name:<16}{size:>10}  {part.device:<18}  {part.problem or part.place}")
    print(f"{'together':<16}{_size(sum(part.size_bytes for part in parts)):>10}")
    if hint := next_step(args.model, parts):
        print(hint)


def _size(size_bytes: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.2f} {unit}"
    return f"{size_bytes / 1e3:.1f} kB"


def add_deploy(commands: Commands) -> None:
    parser = commands.add_parser("deploy", help="publish the demo as a hosted Space")
    add = parser.add_argument
    add("--space", metavar="OWNER/NAME", help="(default: the Spacefile's name, the token's owner)")
    add("--hardware", help="(default: the Spacefile's)")
    add = parser.add_mutually_exclusive_group().add_argument
    add("--dry-run", action="store_true", help="print the plan; nothing is sent")
    add("--update-readme", action="store_true", help="write the front matter of README.md alone")
    parser.set_defaults(run=deploy, extra="hub")


def deploy(args: argparse.Namespace) -> None:
    # Plain HTTP for large files too: it keeps to our time-outs. Read when the client is loaded.
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    # Loads the Hub's client, which takes a while: only when it is wanted.
    from percov2_core.deploy.publish import publish
    from percov2_core.deploy.spacefile import ROOT, make_plan, read_manifest, update_readme

    manifest = read_manifest()
    if args.update_readme:
        update_readme(manifest)
        return
    plan = make_plan(manifest, ROOT, space=args.space, hardware=args.hardware)
    if args.dry_run:
        print(*plan.lines(), sep="\n")
        return
    print(f"running: {publish(plan, report=partial(print, flush=True))}")
