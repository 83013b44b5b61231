"""`randwire-zoo detect`: draw what a detector finds. torchvision is all it needs."""
from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.transforms.functional import pil_to_tensor

from randwire_zoo.evaluation import default_device
from randwire_zoo.files import atomic_path, write_atomically

from .detectors import load_detector

__all__ = ['add_arguments', 'detect', 'draw_detections', 'main']

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')
COLOURS = ('#d8453b', '#3b7dd8', '#2f9e62', '#b8860b', '#8e4ec6', '#0f8b8d', '#c2417c', '#5f6f1c')


@torch.inference_mode()
def detect(detector: FasterRCNN, image: Image.Image) -> dict[str, Tensor]:
    """Find objects in one image.

    The image is resized as detectron2 does it, with PIL's antialiased bilinear filter, and not by torchvision.

    Args:
        detector: In eval mode.
        image: Any mode and size.

    Returns:
        'boxes' [N, 4] as left, top, right, bottom in pixels of the image, 'labels' [N], 'scores' [N], best first.
    """
    image = image.convert('RGB')
    transform = detector.transform
    width, height = image.size
    scale = min(transform.min_size[-1] / min(width, height), transform.max_size / max(width, height))
    size = (max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5)))
    device = next(detector.parameters()).device
    pixels = pil_to_tensor(image.resize(size, Image.Resampling.BILINEAR)).to(device) / 255
    found = detector([pixels])[0]
    stretch = torch.tensor([width / size[0], height / size[1]] * 2, device=device)
    return {**found, 'boxes': found['boxes'] * stretch}


def draw_detections(image: Image.Image, found: dict[str, Tensor], classes: list[str]) -> Image.Image:
    """Draw boxes with class and score on an image, in a colour per class; the best ones on top."""
    from matplotlib import font_manager

    drawn = image.convert('RGB')
    pen = ImageDraw.Draw(drawn)
    shorter = min(image.size)
    font = ImageFont.truetype(font_manager.findfont('DejaVu Sans'), max(10, shorter // 36))
    rows = zip(found['boxes'].tolist(), found['labels'].tolist(), found['scores'].tolist(), strict=True)
    for box, label, score in reversed(list(rows)):
        colour = COLOURS[(label - 1) % len(COLOURS)]
        pen.rectangle(box, outline=colour, width=max(1, shorter // 200))
        text, corner = f' {classes[label]} {score:.2f} ', (box[0], box[1])
        pen.rectangle(pen.textbbox(corner, text, font=font), fill=colour)
        pen.text(corner, text, fill='white', font=font)
    return drawn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `randwire-zoo detect`."""
    parser.add_argument('images', metavar='IMAGE', nargs='+', help='image files, or folders of them')
    parser.add_argument('--weights', metavar='FILE', required=True,
                        help='a detector: see `randwire-zoo convert` and `save_detector`')
    parser.add_argument('--score-thresh', type=float, default=0.5, metavar='S',
                        help='draw detections with at least this score (default: 0.5)')
    parser.add_argument('-o', '--output', metavar='FOLDER', default='output/detect',
                        help='where the pictures go (default: output/detect)')
    parser.add_argument('--json', metavar='FILE', help='also write all boxes, as left, top, right, bottom in pixels')
    parser.add_argument('--device', help='cpu, cuda or mps (default: the best there is)')


def _image_paths(arguments: list[str]) -> list[Path]:
    paths: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            inside = sorted(child for child in path.iterdir() if child.suffix.lower() in SUFFIXES)
            if not inside:
                raise ValueError(f'{path} holds no images ({", ".join(SUFFIXES)})')
            paths += inside
        elif path.is_file():
            paths.append(path)
        else:
            raise FileNotFoundError(f'no image at {path}')
    return paths


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert('RGB')
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f'{path} is no image that can be read: {error}') from None


def main(args: argparse.Namespace) -> int:
    """Run `randwire-zoo detect`."""
    if not 0 <= args.score_thresh <= 1:
        raise ValueError(f'--score-thresh must be within [0, 1], got {args.score_thresh}')
    paths = _image_paths(args.images)
    detector, classes = load_detector(args.weights)
    detector.roi_heads.score_thresh = args.score_thresh
    detector.to(default_device(args.device))
    folder = Path(args.output)
    pictures = _picture_names(paths, folder)
    found_everywhere: list[dict[str, Any]] = []
    for path, picture in zip(paths, pictures, strict=True):
        image = _open(path)
        found = detect(detector, image)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(picture) as temporary:
            draw_detections(image, found, classes).save(temporary, format='PNG')
        counts = Counter(classes[label] for label in found['labels'].tolist())
        summary = ', '.join(f'{count} {name}' for name, count in sorted(counts.items()))
        print(f'{picture}: {summary or "nothing"}', flush=True)
        found_everywhere.append({
            'image': str(path), 'boxes': [[round(x, 1) for x in box] for box in found['boxes'].tolist()],
            'classes': [classes[label] for label in found['labels'].tolist()],
            'scores': [round(score, 4) for score in found['scores'].tolist()]})
    if args.json:
        write_atomically(Path(args.json), json.dumps(found_everywhere, indent=1) + '\n')
        print(args.json)
    return 0


def _picture_names(paths: list[Path], folder: Path) -> list[Path]:
    """A picture's path for each image; images of one name in several folders get a number."""
    taken: Counter[str] = Counter()
    pictures = []
    for path in paths:
        taken[path.stem] += 1
        number = f'_{taken[path.stem]}' if taken[path.stem] > 1 else ''
        pictures.append(folder / f'{path.stem}{number}.png')
    return pictures
