# SPDX-License-Identifier: Apache-2.0
"""Compare this package's image reader with Pillow on all PNG, JPEG and WebP files below a folder.

    python -m benchmarks.image_corpus FOLDER

Pillow's own source distribution has a good collection, in `Tests/images`. Each file is read whole, cut to its half and
cut by one byte. Exits with 1 where a file that Pillow can load is taken for cut or has another size, or where a cut
file is accepted that Pillow cannot load.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections import Counter
from pathlib import Path

from PIL import Image

from airflow_provider_gptimg.mirroring.images import HEAD_BYTES, ImageReader, read_format


def by_pillow(data: bytes) -> tuple[int, int] | None:
    """Return the size in pixels of what Pillow can load; None if it cannot."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=["PNG", "JPEG", "MPO", "WEBP"]) as image:
                size = image.size
                image.load()
                return size
    except Exception:
        return None


def by_reader(data: bytes) -> tuple[int, int] | str | None:
    """Return the size in pixels, `cut`, or None for another kind of file; no length was told."""
    image_format = read_format(data[:HEAD_BYTES])
    if image_format is None:
        return None
    reader = ImageReader(image_format)
    for start in range(0, len(data), 4096):
        reader.feed(data[start : start + 4096])
    return "cut" if reader.is_cut or not reader.ends_well else reader.pixels


def main(folder: str) -> int:
    seen: Counter[str] = Counter()
    wrong = []
    for path in sorted(found for found in Path(folder).rglob("*") if found.is_file()):
        data = path.read_bytes()
        if read_format(data[:HEAD_BYTES]) is None:
            continue
        size, ours = by_pillow(data), by_reader(data)
        seen["images"] += 1
        if size is None:
            seen["that Pillow cannot load"] += 1
            continue
        if ours != size:
            wrong.append(f"{path}: {size} by Pillow, {ours} here")
        for name, part in {"half": data[: len(data) // 2], "all but a byte": data[:-1]}.items():
            seen["cut"] += 1
            if by_reader(part) not in ("cut", None) and by_pillow(part) is None:
                wrong.append(f"{path}, {name}: accepted here, refused by Pillow")
    print(", ".join(f"{number} {what}" for what, number in seen.items()))
    print("\n".join(wrong) or "no difference")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
