"""Pictures and their XML files in Pascal VOC's layout, as programs for drawing boxes write them."""
from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

SIZE = (40, 30)


def picture(size: tuple[int, int] = SIZE, orientation: int | None = None, shade: int = 0) -> bytes:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    file = io.BytesIO()
    Image.new('RGB', size, (shade, 0, 0)).save(file, 'JPEG', exif=exif)
    return file.getvalue()


def annotation(
        *things: tuple[str, float, float, float, float], filename: str = '', size: tuple[int, int] | None = SIZE,
) -> bytes:
    said = '' if size is None else f'<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>'
    objects = ''.join(
        f'<object><name>{name}</name><difficult>1</difficult><bndbox><xmin>{left}</xmin><ymin>{top}</ymin>'
        f'<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>' for name, left, top, right, bottom in things)
    return f'<annotation><filename>{filename}</filename>{said}{objects}</annotation>'.encode()


def lay(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder
