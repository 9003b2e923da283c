"""Floor 1: the embedded stand-in for Detectron2, for machines where that cannot be installed.

A pure subset of it: the same sub-packages, module names, classes, checkpoint keys and numbers, in code of its own
on torchvision, fvcore, iopath, yacs and pycocotools. It does what Detectron2 does, whether one likes it or not, adds
nothing, and imports only relatively inside itself. What it computes is checked against Detectron2 at 02b5c4e.

========== =====================================================================================
config     the tree of defaults, classes built from it, what is refused
structures boxes, masks, instances of one image, padded batches of images
layers     convs that carry their norm, the norms, ROIAlign, NMS, mask pasting
modeling   backbones, proposals, what is computed for each region, whole detectors
data       data sets by name, what is done to an image and its objects, loaders
evaluation VOC's and COCO's average precision, of one process or many
solver     optimizers and schedules
checkpoint a run's states, written whole; weights to where their names end alike
engine     what a program does around its training loop
utils      process groups, registries, logs, seeds, the storage of what happens in training
========== =====================================================================================
"""
