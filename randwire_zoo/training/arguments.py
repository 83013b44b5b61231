"""What the commands of this room are asked. Nothing here imports torch, so that their help is there at once."""
from __future__ import annotations

import argparse

from ..weights.description import CROP_MODES
from .recipes import KEYS, add_key, add_recipe_arguments

__all__ = ['DATA', 'EVAL', 'PROBE', 'add_data_arguments', 'add_eval_arguments', 'add_probe_arguments',
           'add_quickstart_arguments', 'add_teacher_arguments', 'add_train_arguments']

#: Settings of a training that say how images are found and fed, whatever network looks at them.
DATA = ('num_classes', 'in_chans', 'img_size', 'input_size', 'crop_pct', 'mean', 'std', 'interpolation')
#: Settings that `eval` can change.
EVAL = (*DATA, 'data_dir', 'dataset', 'dataset_download', 'class_map', 'input_img_mode', 'model_kwargs', 'gp',
        'batch_size', 'workers', 'device', 'amp', 'amp_dtype', 'channels_last')
#: Settings that `probe` can change.
PROBE = ('data_dir', 'model_kwargs', 'img_size', 'crop_pct', 'mean', 'std', 'interpolation', 'batch_size', 'workers',
         'device', 'amp', 'amp_dtype', 'channels_last')


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `randwire-zoo data`."""
    kinds = parser.add_subparsers(dest='kind', metavar='NAME', required=True)
    sub = kinds.add_parser('digits', help="scikit-learn's 1,797 handwritten digits, which come with it")
    sub.add_argument('folder', metavar='FOLDER', help='image folder to write')
    for name, said in (('cifar10', '60,000 images of ten classes at 32 pixels'),
                       ('mnist', '70,000 handwritten digits at 28 pixels')):
        sub = kinds.add_parser(name, help=f'{said}, which torchvision downloads')
        sub.add_argument('folder', metavar='FOLDER', help='image folder to write: train/ and test/')
        sub.add_argument('--root', metavar='DIR',
                         help="where torchvision finds its files, or puts them (default: a folder of the package's "
                              'cache)')
    sub = kinds.add_parser(
        'tiny-imagenet', help='200 classes of ImageNet at 64 pixels, from its archive',
        description="Tiny ImageNet as an image folder. The images are under ImageNet's terms of use, and you have to "
                    'fetch the archive yourself.')
    sub.add_argument('source', metavar='SOURCE', help='tiny-imagenet-200.zip, or a folder with what is in it')
    sub.add_argument('folder', metavar='FOLDER', help='image folder to write')
    sub = kinds.add_parser(
        'caltech-101', help='photographs of 101 categories, from their archive',
        description='Caltech-101 as an image folder, by the lists train.txt and test.txt where the source has them, '
                    'and otherwise with 30 images of each category to train on.')
    sub.add_argument('source', metavar='SOURCE',
                     help='caltech-101.zip, 101_ObjectCategories.tar.gz, or a folder with 101_ObjectCategories/ in it')
    sub.add_argument('folder', metavar='FOLDER', help='image folder to write')
    sub.add_argument('--per-class', type=int, metavar='N',
                     help='train on so many images of each category, whatever the lists say')
    sub.add_argument('--seed', type=int, default=1, metavar='S', help='of that draw (default: %(default)s)')
    sub = kinds.add_parser(
        'folder', help='your own photographs in a folder per class, split for training',
        description='Your own photographs, in a folder per class, as the image folder that training reads. Of each '
                    'class every Nth image by name is held out; of one that has fewer, the last.')
    sub.add_argument('source', metavar='SOURCE', help='folder, or archive of one, with a folder of images per class')
    sub.add_argument('folder', metavar='FOLDER', help='image folder to write: train/ and validation/')
    sub.add_argument('--every', type=int, default=5, metavar='N', help='hold out every Nth (default: %(default)s)')
    sub = kinds.add_parser(
        'voc', help="your own images with boxes in Pascal VOC's XML files, for detectors",
        description='Images and boxes in COCO\'s layout, from the XML files that programs for drawing boxes write '
                    '(labelImg, CVAT, Roboflow, …). Lists in ImageSets/Main or folders called train and val say what '
                    'is held out; otherwise every fifth is.')
    sub.add_argument('source', metavar='SOURCE', help='folder, or archive of one, with XML files and images in it')
    sub.add_argument('folder', metavar='FOLDER', help='data set to write: annotations/, train/ and val/')
    sub.add_argument('--every', type=int, metavar='N', help='hold out every Nth by name, whatever lists or folders say')
    sub.add_argument('--skip-broken', action='store_true', help='leave out what cannot be read, and say so')


def add_teacher_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `randwire-zoo teacher`."""
    parser.add_argument('weights', metavar='WEIGHTS', help='file of the network for ImageNet')
    parser.add_argument('folder', metavar='FOLDER',
                        help="timm's model folder to write; --kd-model-name local-dir:FOLDER")
    parser.add_argument('--data-dir', required=True, metavar='DIR', help='image folder with classes of ImageNet')
    parser.add_argument('-m', '--model', default='tf_efficientnet_lite2', metavar='NAME',
                        help="timm's name of the network (default: %(default)s)")
    parser.add_argument('--img-size', type=int, default=160, metavar='PIXELS',
                        help='side that the images are enlarged to (default: %(default)s)')
    parser.add_argument('-b', '--batch-size', type=int, default=64, metavar='N', help='(default: %(default)s)')
    parser.add_argument('-j', '--workers', type=int, default=1, metavar='N', help='(default: %(default)s)')
    parser.add_argument('--device', metavar='NAME', help='cuda, cpu, …; a GPU if there is one')
    parser.add_argument('--no-amp', action='store_true', help='full precision instead of bfloat16')
    parser.add_argument('--no-progress', action='store_true', help='no progress bars')


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `randwire-zoo train`: a recipe, and a flag per key."""
    parser.add_argument('-c', '--config', metavar='FILE',
                        help='recipe: a yaml file, or a packaged one such as digits/randwire_ws_pico')
    parser.add_argument('--no-progress', action='store_true', help='no progress bars, not even on a terminal')
    add_recipe_arguments(parser)


def add_eval_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `randwire-zoo eval`: validate.py's names. What is not given is as the training had it."""
    parser.add_argument('--checkpoint', default='', metavar='FILE',
                        help='checkpoint of a training, which needs no other flag; or other weights (safetensors, a '
                             'state dict); the published ones of --model if not given')
    parser.add_argument('-m', '--model', default=argparse.SUPPRESS, metavar='NAME',
                        help="name of the model (default: the checkpoint's)")
    parser.add_argument('--split', default=argparse.SUPPRESS, metavar='NAME',
                        help="folder of the split, '' if there is none (default: as trained, or validation)")
    _add_average(parser)
    parser.add_argument('--crop-mode', default=argparse.SUPPRESS, choices=CROP_MODES,
                        help="timm's way of cropping (default: as trained)")
    parser.add_argument('--confusion', metavar='FILE',
                        help='write a table (.csv) of how many images of each class, in rows, were taken for which, in '
                             'columns')
    for name in EVAL:
        add_key(parser, KEYS[name], 'as trained')
    add_key(parser, KEYS['kernels'])
    add_key(parser, KEYS['device_modules'])


def _add_average(parser: argparse.ArgumentParser) -> None:
    average = parser.add_mutually_exclusive_group()
    average.add_argument('--use-ema', action='store_true', default=argparse.SUPPRESS,
                         help="take the checkpoint's moving average (default: as trained)")
    average.add_argument('--no-ema', dest='use_ema', action='store_false', default=argparse.SUPPRESS,
                         help='take the weights themselves')


def add_probe_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `randwire-zoo probe`: those of `randwire-zoo eval`, as far as they concern it."""
    parser.add_argument('--checkpoint', default='', metavar='FILE',
                        help='checkpoint of a training, or other weights; the published ones of --model if not given')
    parser.add_argument('-m', '--model', default=argparse.SUPPRESS, metavar='NAME',
                        help="name of the model (default: the checkpoint's)")
    parser.add_argument('--split', default=argparse.SUPPRESS, metavar='NAME',
                        help='folder of the images to measure on (default: validation)')
    _add_average(parser)
    parser.add_argument('--random', type=int, metavar='SEED', help='random parameters of this seed instead, as a mark')
    parser.add_argument('--no-progress', action='store_true', help='no progress bars')
    own = {'data_dir': 'it must be named', 'workers': '2', 'device': 'a GPU if there is one'}
    for name in PROBE:
        add_key(parser, KEYS[name], own.get(name, 'as trained'))
    add_key(parser, KEYS['kernels'])
    add_key(parser, KEYS['device_modules'])


def add_quickstart_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `randwire-zoo quickstart`."""
    parser.add_argument('--output', metavar='DIR', default='output/quickstart',
                        help='folder for everything (default: %(default)s)')
    parser.add_argument('--seed', type=int, metavar='N', help="seed of the training (default: the recipe's)")
    parser.add_argument('--epochs', type=int, metavar='N', help="epochs (default: the recipe's)")
    add_key(parser, KEYS['kernels'])
    parser.add_argument('--no-progress', action='store_true', help='no progress bars, not even on a terminal')
