"""A second painter small enough to be trained: Stable Diffusion 3's transformer at toy size, on the
latents of the embedded model's own autoencoder, without text.

`python -m tests.tiny_painter PHOTOS KODAK --out FOLDER` trains one, prints patch SWD
and MS-SSIM before and after repainting, and writes a contact sheet.
"""

import sys
from argparse import ArgumentParser
from functools import partial
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from PIL import Image, ImageOps

from percov2_core import load_codec
from percov2_core.evaluation.protocol import list_pictures, to_tensor
from percov2_core.flow.sampler import shifted
from percov2_core.flow.text import TextEmbedding
from percov2_core.flow.transformer import TIMESTEPS, FlowConfig, FlowModel
from percov2_core.image_io import to_tensor as padded
from percov2_core.metrics.distortion import ms_ssim
from percov2_core.metrics.swd import descriptors, sliced_wasserstein
from percov2_core.repaint import Repainter
from percov2_core.weights.base import scheduled

SHIFT = 1.5
NOTHING = 16  # width of a text that says nothing
SIZES = (62, 124, 240)
PRESETS = ("faithful", "balanced", "vivid")


class Silence:
    def encode(self, captions):
        n = len(captions)
        return TextEmbedding(torch.zeros(n, 1, NOTHING), torch.zeros(n, NOTHING))


def train(vae, pictures, *, steps, width=64, layers=2, batch=16, cells=8, lr=2e-3, seed=0):
    """Flow matching on crops of `cells` latent cells a side -> a painter, the same each time."""
    with torch.no_grad():
        latents = [vae.encode(padded(picture, 16))[0] for picture in pictures]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        how = {"num_layers": layers, "attention_head_dim": 32, "num_attention_heads": width // 32}
        how |= {"caption_projection_dim": width, "joint_attention_dim": NOTHING}
        how |= {"pooled_projection_dim": NOTHING, "in_channels": 16, "out_channels": 16}
        model = SD3Transformer2DModel(**how, sample_size=64, patch_size=2, pos_embed_max_size=64)
        torch.nn.init.zeros_(model.proj_out.weight)
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1)
        for _ in range(steps):
            z = torch.stack([_crop(latents, cells) for _ in range(batch)])
            noise, t = torch.randn_like(z), shifted(torch.rand(batch), SHIFT)
            tt, text = t[:, None, None, None], Silence().encode([""] * batch)
            v = model(
                hidden_states=(1 - tt) * z + tt * noise,
                encoder_hidden_states=text.sequence,
                pooled_projections=text.pooled,
                timestep=t * TIMESTEPS,
                return_dict=False,
            )[0]
            (v - (noise - z)).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            rate.step()
    times = partial(scheduled, FlowMatchEulerDiscreteScheduler(shift=SHIFT))
    flow = FlowModel(model.eval().requires_grad_(False), FlowConfig(start="noise"))
    return Repainter(name="tiny", vae=vae, text=Silence(), flow=flow, times=times)


def _crop(latents, cells):
    z = latents[int(torch.randint(len(latents), ()))]
    y, x = (int(torch.randint(n - cells + 1, ())) for n in z.shape[1:])
    return z[:, y : y + cells, x : x + cells]


def patch_swd(picture, other):
    sides = (descriptors(to_tensor(one)) for one in (picture, other))
    return float(sliced_wasserstein(*sides))


def square(path, side):
    with Image.open(path) as image:
        return ImageOps.fit(image.convert("RGB"), (side, side))


def main():
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("kodak", type=Path)
    usual = {"steps": 400, "width": 64, "layers": 2, "limit": 3, "side": 256, "train": 24}
    for name, value in usual.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    codec = load_codec(device="cpu")
    found = list_pictures(args.photos)
    photos = [square(path, args.side) for path in found[:: max(1, len(found) // args.train)]]
    how = {"steps": args.steps, "width": args.width, "layers": args.layers}
    second = train(codec.vae, photos, **how, lr=4e-3)
    codec.painters = lambda name: second
    rows = []
    for size in SIZES:
        scores, sheet = {}, []
        for path in list_pictures(args.kodak)[:: max(1, 24 // args.limit)]:
            image = square(path, args.side)
            stream = codec.encode(image, size=size)
            shown = {"own": codec.decode(stream)}
            for preset in PRESETS:
                told = {"preset": preset, "guidance": 1.0, "painter": "tiny"}
                shown[preset] = codec.decode(stream, **told)
            for name, picture in shown.items():
                pair = [to_tensor(one) for one in (image, picture)]
                measured = (patch_swd(image, picture), float(ms_ssim(*pair)))
                scores.setdefault(name, []).append(measured)
            sheet.append([image, *shown.values()])
        for name, found in scores.items():
            swd, structure = (sum(column) / len(found) for column in zip(*found, strict=True))
            scores_of = f"{swd:6.1f} patch SWD, {structure:.3f} MS-SSIM"
            print(f"{size:>4} bytes  {name:<9} {scores_of}", flush=True)
        rows += sheet
    contact = Image.new("RGB", (args.side * len(rows[0]), args.side * len(rows)))
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            contact.paste(picture, (args.side * x, args.side * y))
    args.out.mkdir(parents=True, exist_ok=True)
    contact.save(args.out / "second_painter.png")


if __name__ == "__main__":
    sys.exit(main())
