#!/usr/bin/env python3
"""Crop and resize against Pillow, byte for byte: photos and smaller images of every JPEG layout, random crops, both filters,
every code path (exact_pixels.cpp). A seeded sample of 600 pairs of image and crop; 100,000 under TESSERA_FULL.

usage: test_exact_pixels.py EXACT_PIXELS [PAIRS [SEED]]       (with the Python of ops/setup --test)
"""
import collections
import hashlib
import io
import json
import math
import os
import pathlib
import random
import subprocess
import sys
import tarfile
import tempfile

from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[2]
SAMPLE = pathlib.Path(os.environ.get("TESSERA_SAMPLE_DATA") or ROOT / "../shared/data")


def small_forms(photo, number):
    """Encodings of one reduced photo: sub-samplings, grey, progressive, restart markers, CMYK, PNG."""
    image = Image.open(photo).convert("RGB")
    image.thumbnail((90 + number % 97, 80 + number % 89))
    quality = 40 + number * 7 % 60
    for name, picture, options in (("444", image, {"subsampling": 0}), ("422", image, {"subsampling": 1}), ("420", image, {"subsampling": 2, "optimize": True}),
                                   ("grey", image.convert("L"), {}), ("progressive", image, {"progressive": True}), ("cmyk", image.convert("CMYK"), {}),
                                   ("restarts", image, {"restart_marker_blocks": 1 + number % 9})):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality, **options)
        yield name, buffer.getvalue()
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    yield "png", buffer.getvalue()


def make_files(folder, photos):
    files = list(photos)
    for number, photo in enumerate(photos[::max(1, len(photos) // 60)]):
        for name, content in small_forms(photo, number):
            files.append(folder / f"{number}-{name}")
            files[-1].write_bytes(content)
    cifar = SAMPLE / "cifar10/test-000.tar"
    if cifar.is_file():
        with tarfile.open(cifar) as tar:
            for number, member in enumerate(m for m in tar if m.name.endswith((".jpg", ".png"))):
                if number == 200:
                    break
                files.append(folder / member.name.replace("/", "_"))
                files[-1].write_bytes(tar.extractfile(member).read())
    return files


def crop(width, height, draw):
    """RandomResizedCrop's boxes, and one in four of any shape."""
    if draw.random() < 0.25:
        w, h = draw.randint(1, width), draw.randint(1, height)
    else:
        area, aspect = width * height * draw.uniform(0.3, 1), math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = min(width, max(1, round(math.sqrt(area * aspect)))), min(height, max(1, round(math.sqrt(area / aspect))))
    return draw.randint(0, height - h), draw.randint(0, width - w), h, w


def main():
    pairs = int(sys.argv[2]) if len(sys.argv) > 2 else 100_000 if os.environ.get("TESSERA_FULL") else 600
    photos = sorted((SAMPLE / "photos").glob("*.JPEG"))
    if not photos:
        print(f"not there: {SAMPLE / 'photos'}")
        return 1 if os.environ.get("TESSERA_REQUIRE_SHARED") == "1" else 77
    draw = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 17)
    if pairs < 10_000:
        photos = photos[::40]
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(pathlib.Path(folder), photos)
        process = subprocess.Popen([sys.argv[1], *map(str, files)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        done, wrong, chosen = 0, [], collections.Counter(draw.randrange(len(files)) for _ in range(pairs))
        for index, count in sorted(chosen.items()):
            image = Image.open(files[index]).convert("RGB")
            for first in range(0, count, 200):  # written ahead, so that both work at once; a pipe holds more than their answers
                boxes = [crop(*image.size, draw) for _ in range(min(200, count - first))]
                process.stdin.write("".join(f"{index} {top} {left} {height} {width}\n" for top, left, height, width in boxes))
                process.stdin.flush()
                for top, left, height, width in boxes:
                    window = image.crop((left, top, left + width, top + height))
                    want = [hashlib.sha1(window.resize((224, 224), f).tobytes()).hexdigest() for f in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)]
                    got = process.stdout.readline().split()
                    done += 1
                    if got != want:
                        wrong.append((str(files[index]), top, left, height, width, got))
        process.stdin.close()
        process.wait()
    print(json.dumps({"schema": 1, "pairs": done, "files": len(files), "filters": 2, "differing": len(wrong), "first": wrong[:3], "pillow": Image.__version__}))
    return 1 if wrong or done != pairs else 0


if __name__ == "__main__":
    sys.exit(main())
