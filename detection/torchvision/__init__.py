"""RandWire networks in torchvision's Faster R-CNN, which needs no detectron2: detectors, their images, `detect`."""
