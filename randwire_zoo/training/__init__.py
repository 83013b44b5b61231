"""Training and evaluation of networks on folders of images, and what both are given.

    recipes        settings of a training: timm's own arguments, ours, and the recipes that are installed
    trainer        the lean trainer, `randwire-zoo train`
    evaluation     accuracy on a folder of images, `randwire-zoo eval`
    datasets, digits   data sets as folders of images, `randwire-zoo data`
    linear_probe   accuracy of a linear classifier of frozen features, `randwire-zoo probe`
    distillation   a teacher for a data set with classes of ImageNet, `randwire-zoo teacher`
    quickstart     all of it on handwritten digits, `randwire-zoo quickstart`
"""
