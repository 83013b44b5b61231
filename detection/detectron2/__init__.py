"""RandWire networks in detectron2: backbone, registry, `MODEL.WEIGHTS` and data sets."""
