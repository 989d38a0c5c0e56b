"""Teach Pillow `.pcv2`: `import percov2_core.pillow`, then `Image.open` and `image.save` know it.

    Image.open("x.pcv2")                        size and mode known at once, painted on first use
    image.save("x.pcv2", size=250)              any keyword of `PerCoV2.encode`, and `model`

`Image.open` hands on neither model nor preset: `MODEL` and `PRESET` here hold for all that is read.
"""

from __future__ import annotations

from functools import lru_cache
from inspect import signature
from typing import IO, TYPE_CHECKING, Any

from PIL import Image, ImageFile

from percov2_core.bitstream import FIRST_BYTE, MAX_FILE_BYTES, Stream
from percov2_core.errors import PerCoError

if TYPE_CHECKING:
    from percov2_core.codec import PerCoV2

FORMAT, EXTENSION, MIME = "PCV2", ".pcv2", "image/x-pcv2"
MODEL, PRESET = "embedded", "balanced"


class Pcv2ImageFile(ImageFile.ImageFile):
    """A `.pcv2` file as a Pillow picture. `info` holds mode and schedule, and once painted the
    caption. OSError when it is painted if it is damaged or of another model."""

    format = FORMAT
    format_description = "PerCoV2"

    def _open(self) -> None:
        assert self.fp is not None
        try:
            self._stream: Stream | None = Stream.from_bytes(self.fp.read(MAX_FILE_BYTES + 1))
        except PerCoError as error:
            raise SyntaxError(str(error)) from error  # how a plugin says "not mine" to Image.open
        self._size = (self._stream.width, self._stream.height)
        self._mode = "RGB"
        self.info.update(mode=self._stream.mode, schedule=self._stream.schedule)

    def load(self) -> Any:
        if self._stream is not None:
            codec = _codec(MODEL)
            try:
                contents = codec.read(self._stream)
                *_, last = codec.paint(contents, preset=PRESET)
            except PerCoError as error:
                raise OSError(str(error)) from error
            assert last.picture is not None
            self.im, self._stream = last.picture.im, None
            self.info["caption"] = contents.caption
            if self.fp and self._exclusive_fp:
                self.fp.close()
            self.fp = None
        return super().load()


def _save(image: Image.Image, file: IO[bytes], _name: str | bytes) -> None:
    given = dict(getattr(image, "encoderinfo", {}))
    codec = _codec(given.pop("model", MODEL))
    # As other plugins do, what this format has no use for is left alone.
    known = signature(codec.encode).parameters
    options = {name: value for name, value in given.items() if name in known}
    file.write(codec.encode(image, **options).to_bytes())


@lru_cache(maxsize=2)
def _codec(model: str) -> PerCoV2:
    from percov2_core.weights import load_codec  # takes seconds: not before a picture is needed

    return load_codec(model)


Image.register_open(FORMAT, Pcv2ImageFile, lambda prefix: prefix[:1] == bytes([FIRST_BYTE]))
Image.register_save(FORMAT, _save)
Image.register_extension(FORMAT, EXTENSION)
Image.register_mime(FORMAT, MIME)
