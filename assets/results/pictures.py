"""What one example looks like at every point of ours in the demo's Trade-off tab:

    python assets/results/pictures.py

paints it with the bundled model and writes `pictures/`, a small WebP per setting.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from percov2_core import load_codec
from percov2_core.contents import Contents
from percov2_core.evaluation.protocol import centre_square
from percov2_core.evaluation.rows import PICTURES, picture_name
from percov2_core.ui.stored import Measurements, write_thumbnail

RESULTS = Path(__file__).parent
EXAMPLE = RESULTS.parent / "examples" / "kodim23-parrots.jpg"


def main() -> None:
    codec = load_codec()
    found = codec.look(centre_square(Image.open(EXAMPLE)))
    folder, contents = RESULTS / PICTURES, dict[tuple[str, int | None], Contents]()
    folder.mkdir(exist_ok=True)
    for row in Measurements(RESULTS).ours():
        mode, count, most = (row.get(name) for name in ("mode", "tokens", "budget_bytes"))
        count, most = (None if n is None else int(n) for n in (count, most))
        if (mode, most) not in contents:
            contents[mode, most] = codec.read(codec.write(found, mode, count=count, size=most))
        look = {name: row[name] for name in ("steps", "guidance", "preset") if name in row}
        look |= {"steps": int(row["steps"])} if "steps" in row else {}
        *_, last = codec.paint(contents[mode, most], **look)
        assert last.picture is not None
        write_thumbnail(last.picture, folder / picture_name(row["key"]))


if __name__ == "__main__":
    main()
