"""What the commands of this room are asked. Nothing here imports torch, so that their help is there at once."""
from __future__ import annotations

import argparse

__all__ = ['add_convert_arguments', 'add_detect_arguments']


def add_detect_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `randwire-zoo detect`."""
    parser.add_argument('images', metavar='IMAGE', nargs='+', help='image files, or folders of them')
    parser.add_argument('--weights', metavar='FILE', required=True,
                        help='a detector: see `randwire-zoo convert` and `save_detector`')
    parser.add_argument('--score-thresh', type=float, default=0.5, metavar='S',
                        help='draw and count detections with at least this score (default: 0.5)')
    parser.add_argument('-o', '--output', metavar='FOLDER', default='output/detect',
                        help='where the pictures go (default: output/detect)')
    parser.add_argument('--json', metavar='FILE',
                        help='also write all that the detector gives, those with lower scores too (see its '
                        'box_score_thresh): boxes as left, top, right, bottom in pixels, image by image')
    parser.add_argument('--device',
                        help='cpu, cuda or mps (default: a GPU of CUDA if there is one, otherwise the CPU)')


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `randwire-zoo convert`."""
    parser.add_argument('source', metavar='SOURCE',
                        help='a checkpoint of timm or detectron2, .safetensors, randwire://arch.tag or '
                        'hf-hub:owner/name')
    parser.add_argument('output', metavar='OUTPUT', help='.pth: a backbone for detectron2; .safetensors: a detector')
    parser.add_argument('--model', metavar='NAME', help="the backbone's name, if the source does not say it")
    parser.add_argument('--no-ema', action='store_true',
                        help='take the trained weights and not their moving average')
    parser.add_argument('--config', metavar='FILE',
                        help="for a detector: the config.yaml that detectron2 wrote beside it")
    parser.add_argument('--classes', metavar='NAMES',
                        help="for a detector: the classes' names, separated by commas, or COCO json that lists them "
                        '(default: those of the data set that it was trained on, where that is found)')
