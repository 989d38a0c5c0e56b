"""What a stranger sends: values, paths, pictures and files that nobody should have to fear."""

import io
import json
import os
import random
import zipfile
from dataclasses import replace

import numpy as np
from PIL import Image, PngImagePlugin

from percov2_core.bitstream import Stream
from percov2_core.caption.packing import FORMS
from percov2_core.config import FILE_MODES
from percov2_core.entropy.coder import SymbolWriter
from tests.hostile.stranger import file_data
from tests.picture_files import claiming, saved
from tests.tiny import picture

MARK = "<img src=x onerror=alert(1)>"  # may reach no page unescaped
SECRET = "what the owner keeps to himself"
NOISE = random.Random(26_000).randbytes(26_000)  # begins with what may be a caption

ANYTHING = {
    "HTML": f"{MARK}<script>alert(1)</script>",
    "not a number": float("nan"),
    "null": None,
    "10 MB": "a" * 10_000_000,
    "control characters": "".join(map(chr, [*range(32), *range(127, 160)])),
    "right to left": "\u202e\u2066gnp.exe\u2069",
    "zero width": "\u200b\u200d\ufeff\u2060" * 50,
    "half a character": "\ud800",
    "dots": "../../../../etc/passwd",
    "a format": "{0.__class__} %s %n ${HOME} {{7*7}}",
    "infinity": float("inf"),
    "minus infinity": float("-inf"),
    "below": -1,
    "far below": -(10**30),
    "far above": 10**30,
    "beyond float": 10**400,
    "a fraction": 0.5,
    "true": True,
    "an empty list": [],
    "a list": ["extreme"],
    "an object": {"__type__": "update", "value": MARK, "visible": True},
    "a nest": [[[[[[[[[[[[[[[[{}]]]]]]]]]]]]]]]],
}
# What an input of settings gets besides.
SETTINGS = {
    "a deep nest": "[" * 9_000,
    "a deep object": '{"mode":' * 900 + "1" + "}" * 900,
    "a long number": f'{{"seed": {"9" * 9_000}}}',
    "a huge number": f'{{"guidance": 1{"0" * 400}}}',
    "no number": '{"guidance": NaN, "steps": -Infinity}',
    "a key twice": '{"steps": 1, "steps": 2}',
    "a key in HTML": json.dumps({MARK: MARK}),
    "a caption of 1 MB": json.dumps({"caption": "a" * 1_000_000}),
    "half a character": r'{"caption": "\ud800"}',
    "control characters": r'{"caption": "\u0000\u001b[31m\u202e"}',
    "HTML": json.dumps({"caption": MARK, "mode": "ultra-low"}),
    "an hour": '{"steps": 100, "effort": "best", "fit": 4096}',
    "another captioner": '{"captioner": "auto"}',
}
# What the page's own scripts send along with a click.
EVENTS = [
    "x", [1], *({"name": value, "path": value, "key": value}
                for value in ("run:999", ["a"], float("nan"), MARK, "", None, -1)),
]  # fmt: skip


def places(folder, uploads, port):
    """Paths and addresses that no visitor may have opened. `port`: somebody listens there."""
    secret, info = folder / "secret.png", PngImagePlugin.PngInfo()
    info.add_text("Comment", SECRET)
    picture(seed=99).save(secret, pnginfo=info)
    (folder / "secret.txt").write_text(SECRET)
    inside = uploads / "planted"
    inside.mkdir(parents=True, exist_ok=True)
    for place in (folder, inside):
        os.mkfifo(place / "pipe.png")
    (inside / "link.png").symlink_to(secret)
    (inside / "linked").symlink_to(folder)
    return {
        "a picture outside": str(secret),
        "a text outside": str(folder / "secret.txt"),
        "nothing outside": str(folder / "nothing.png"),
        "/etc/passwd": "/etc/passwd",
        "the process": "/proc/self/environ",
        "zeros": "/dev/zero",
        "noise": "/dev/random",
        "a terminal": "/dev/stdin",
        "a pipe": str(folder / "pipe.png"),
        "a pipe inside": str(inside / "pipe.png"),
        "a link": str(inside / "link.png"),
        "a linked folder": str(inside / "linked" / "secret.png"),
        "a folder": str(folder),
        "a folder inside": str(inside),
        "out by dots": f"{inside}/../../../{folder.name}/secret.png",
        "relative": os.path.relpath(secret),
        "nothing": "",
        "a zero byte": f"{inside}/a\0.png",
        "a long name": f"{inside}/{'a' * 5000}.png",
        "file:": f"file://{secret}",
        "loopback": f"http://127.0.0.1:{port}/secret.png",
        "loopback by name": f"http://localhost:{port}/secret.png",
        "loopback in one number": f"http://2130706433:{port}/secret.png",
        "loopback of version 6": f"http://[::1]:{port}/secret.png",
        "a user before": f"http://example.org@127.0.0.1:{port}/gradio_api/file={secret}",
        "data:": "data:image/png;base64,iVBORw0KGgo=",
    }


def payloads(places):
    """The same as the page's file inputs take them, with and without gradio's mark."""
    found = {}
    for what, path in places.items():
        found |= {f"{what}, bare": {"path": path}, f"{what}, marked": file_data(path)}
        if "://" in path:
            found[f"{what}, as address"] = file_data("/x.png", url=path)
            found[f"{what}, streamed"] = file_data(path, url=path, is_stream=True)
    secret = places["a picture outside"]
    odd = ({"orig_name": "a"}, [file_data(secret)], {"path": {"path": secret}}, {"path": 1}, secret)
    return found | {f"odd {i}": payload for i, payload in enumerate(odd)}


def uploads(codec):
    """-> name and content of pictures and files that are none, or too much of one."""
    plain = saved(picture(64, 64), "PNG")
    long, squeezed = PngImagePlugin.PngInfo(), PngImagePlugin.PngInfo()
    long.add_text("Comment", "a" * 5_000_000)
    squeezed.add_text("Comment", "a" * 50_000_000, zip=True)
    stream = codec.encode(picture(64, 64), "extreme", caption="a cat")
    dangerous = codec.encode(picture(64, 64), "extreme", caption=f"{MARK}\0\x1b[31m\u202e")
    claims = {
        f"{mode} {width} x {height}, {length:,} bytes": (
            "a.pcv2", claim(stream, mode, (width, height), NOISE[:length])
        )
        for mode in ("extreme", "ultra-low")
        for width, height in ((4096, 4096), (2048, 2048), (64, 4096))
        for length in (40, 26_000)
    }  # fmt: skip
    return claims | {
        "60,000 x 60,000": ("a.png", claiming(60_000, 60_000)),
        "4,000,000,000 x 1": ("a.png", claiming(4_000_000_000, 1)),
        "5 MB of text": ("a.png", saved(picture(64, 64), "PNG", pnginfo=long)),
        "50 MB of text, squeezed": ("a.png", saved(picture(64, 64), "PNG", pnginfo=squeezed)),
        "10,000 frames": ("a.png", _gif(10_000)),
        "an archive in an archive": ("a.png", _archive(_archive(bytes(10**7)))),
        "half a picture": ("a.png", plain[: len(plain) // 2]),
        "nothing": ("a.png", b""),
        "a drawing": ("a.svg", f"<svg onload='alert(1)'>{MARK}</svg>".encode()),
        "a program": ("a.png", b"%!PS\n(/etc/passwd) (r) file"),
        "one line": ("a.png", saved(Image.new("RGB", (4000, 1)), "PNG")),
        "named in HTML": (f"{MARK}.png", b"no picture"),
        "too long": ("a.pcv2", stream.to_bytes() + bytes(300_000)),
        "a header": ("a.pcv2", stream.to_bytes()[:7]),
        "noise": ("a.pcv2", NOISE),
        "a caption in HTML": ("a.pcv2", dangerous.to_bytes()),
        "no caption": ("a.pcv2", caption_of_bytes(codec, b"\xff\xfe" + MARK.encode())),
    }


def claim(stream, mode, size, payload):
    """A file of any size that a header can name, with `payload` in it."""
    header = Stream.blank(size, mode, stream.fingerprint, schedule=stream.schedule)
    if FILE_MODES[mode].partial:
        header = replace(header, tokens_sent=sum(header.tokens_total))
    return replace(header, check=stream.check, payload=payload).to_bytes()


def caption_of_bytes(codec, said):
    """A file whose caption is `said`, which need not be text."""
    writer = SymbolWriter()
    forms = np.array([[form.frequency for form in FORMS]], dtype=np.uint32)
    writer.write(np.array([len(FORMS) - 1]), forms)
    for symbol, among in [(len(said), 1024), *((letter, 256) for letter in said)]:
        freqs = np.full((1, among), forms.sum() // among, dtype=np.uint32)
        writer.write(np.array([symbol]), freqs)
    stream = codec.encode(picture(64, 64), "hybrid", caption="")
    return replace(stream, payload=writer.finish()).to_bytes()


def _gif(frames):
    """A picture that goes on and on."""
    first, second = (picture(64, 64, seed=seed).convert("P") for seed in (0, 1))
    data = saved(first, "GIF", save_all=True, append_images=[second])
    start = data.index(b"\x21\xf9")
    return data[:start] + data[start:-1] * (frames // 2) + b";"


def _archive(data):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", data)
    return buffer.getvalue()
