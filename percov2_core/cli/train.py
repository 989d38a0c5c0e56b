"""`train`: one stage of training, from a folder of photos."""

from __future__ import annotations

import argparse
from pathlib import Path

from percov2_core.cli.common import Commands
from percov2_core.config import RATES

# The names of `training.recipes.STAGES`; importing them from there would pull in torch.
STAGES = ("autoencoder", *RATES, *(f"masked-{rate}" for rate in RATES), "caption", "cache")


def add_parser(commands: Commands) -> None:
    parser = commands.add_parser("train", help="train one stage of a model")
    parser.add_argument("stage", choices=STAGES, metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--data", type=Path, help="folder of photos")
    parser.add_argument("--out", type=Path, required=True, help="folder of this run")
    parser.add_argument("--minutes", type=float, help="wall-clock length of the run")
    parser.add_argument("--steps", type=int, help="length in steps instead, for repeatable runs")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--device", help="cpu or cuda; the default takes a GPU if there is one")
    parser.add_argument("--config", type=Path, help="recipe, a JSON file of settings")
    parser.add_argument("--vae", type=Path, help="folder of the trained autoencoder")
    parser.add_argument("--parts", type=Path, help="masked-*: folder of the rate's modules")
    parser.add_argument("--init", type=Path, help="folder of a run of this stage to start from")
    parser.add_argument("--perceptual", type=Path, help="SqueezeNet weights for the loss")
    parser.add_argument("--pictures", type=Path, help="folder of pictures to score on")
    parser.add_argument("--captions", type=Path, help="caption: captions, one a line, gzipped")
    base = parser.add_argument_group("over Stable Diffusion 3")
    base.add_argument(
        "--model", metavar="BASE[:DIR]", help="sd3-medium or sd3.5-medium, and the model folder"
    )
    base.add_argument("--cache", type=Path, help="folder that the stage cache wrote")
    base.add_argument("--captioner", default="auto", help="cache: who writes the captions")
    base.add_argument("--no-t5", action="store_true", help="cache: without the third text encoder")
    base.add_argument(
        "--lora-rank", type=int, help="rank of a new model's difference, 0 to train in full; 64"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    # Loads torch, which takes seconds: only once the arguments are known to be good.
    from percov2_core.training.recipes import STAGES as RECIPES
    from percov2_core.training.recipes import Job, read_recipe

    job = Job(
        data=args.data,
        out=args.out,
        recipe=read_recipe(args.config),
        minutes=args.minutes,
        steps=args.steps,
        device=args.device,
        resume=args.resume,
        vae=args.vae,
        parts=args.parts,
        init=args.init,
        perceptual=args.perceptual,
        pictures=args.pictures,
        captions=args.captions,
        model=args.model,
        cache=args.cache,
        captioner=args.captioner,
        t5=not args.no_t5,
        lora_rank=args.lora_rank,
        report=print,
    )
    RECIPES[args.stage](job)
