"""`detectron2.datasets` under the name that configs and DETECTRON2_ENV_MODULE have for it."""
from .detectron2.datasets import load_dataset_dicts, register_coco_folders, setup_environment

__all__ = ['load_dataset_dicts', 'register_coco_folders', 'setup_environment']
