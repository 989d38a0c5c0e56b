"""`deploy`: the demo as a hosted Space, as the Spacefile says."""

from __future__ import annotations

import argparse
import os

from percov2_core.cli.terminal import Commands


def add_deploy(commands: Commands) -> None:
    parser = commands.add_parser("deploy", help="publish the demo as a hosted Space")
    add = parser.add_argument
    add("--space", metavar="OWNER/NAME", help="(default: the Spacefile's name, the token's owner)")
    add("--hardware", help="(default: the Spacefile's)")
    add = parser.add_mutually_exclusive_group().add_argument
    add("--dry-run", action="store_true", help="print the plan; nothing is sent")
    add("--update-readme", action="store_true", help="write the front matter of README.md alone")
    parser.set_defaults(run=run, extra="hub")


def run(args: argparse.Namespace) -> None:
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
    print(f"running: {publish(plan, report=_say)}")


def _say(line: str) -> None:
    # At once: the next step may take minutes.
    print(line, flush=True)
