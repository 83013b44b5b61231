"""The LazyConfig twin of faster_rcnn_randwire.yaml, for detectron2's lazyconfig_train_net.py:

    python tools/lazyconfig_train_net.py --config configs/faster_rcnn_randwire.py

Another network, with train.init_checkpoint=FILE: model.backbone.bottom_up.name=randwire_ws_c154; any network of the
generator: model.backbone.bottom_up.name=randwire '+model.backbone.bottom_up.graph="er(0.2)"'.

From random weights, as such a network has none: train.init_checkpoint="" model.backbone.bottom_up.norm=BN
model.backbone.bottom_up.freeze_at=0, because layers that are frozen would stay random.
"""
from importlib.util import find_spec
from pathlib import Path

from detectron2.config import LazyCall, LazyConfig

from randwire_zoo.detection import RandWireBackbone
from randwire_zoo.detection.datasets import load_dataset_dicts

# detectron2.model_zoo has a function for this, but importing it takes pkg_resources, which setuptools has dropped.
COMMON = Path(find_spec('detectron2').submodule_search_locations[0]) / 'model_zoo' / 'configs' / 'common'


def _common(path: str, key: str):
    return LazyConfig.load(str(COMMON / path))[key]


model = _common('models/mask_rcnn_fpn.py', 'model')
dataloader = _common('data/coco.py', 'dataloader')
lr_multiplier = _common('coco_schedule.py', 'lr_multiplier_1x')
optimizer = _common('optim.py', 'SGD')
train = _common('train.py', 'train')
train.init_checkpoint = 'randwire://randwire_ws_c109.tin200_kd'

model.backbone.bottom_up = LazyCall(RandWireBackbone)(
    name='randwire_ws_c109', out_features=['res2', 'res3', 'res4', 'res5'], norm='FrozenBN', freeze_at=2)
for key in ('mask_in_features', 'mask_pooler', 'mask_head'):
    del model.roi_heads[key]

# Names of data sets that nobody has registered may be folders in COCO's layout, whose classes are compared with these.
for split in ('train', 'test'):
    dataloader[split].dataset._target_ = load_dataset_dicts
    dataloader[split].dataset.num_classes = '${oc.select:model.roi_heads.num_classes,null}'
dataloader.test.dataset.trained_on = '${dataloader.train.dataset.names}'

# Detectron's losses and RoIAlign.
model.proposal_generator.smooth_l1_beta = 1 / 9
model.roi_heads.box_predictor.smooth_l1_beta = 1.0
model.roi_heads.box_pooler.sampling_ratio = 2
model.roi_heads.box_pooler.pooler_type = 'ROIAlign'

# RGB and the weights' own statistics; a single scale. What the model says of its images is what it gets.
dataloader.train.mapper.image_format = 'RGB'
model.input_format = '${oc.select:dataloader.train.mapper.image_format,RGB}'
model.pixel_mean = [123.675, 116.28, 103.53]
model.pixel_std = [58.395, 57.12, 57.375]
dataloader.train.mapper.use_instance_mask = False
dataloader.train.mapper.augmentations[0].short_edge_length = (800,)
dataloader.train.mapper.augmentations[0].max_size = 1333
