"""The embedded stand-in for Detectron2, for machines where that cannot be installed.

A subset of Detectron2: the same sub-packages, module names, classes, checkpoint keys and numbers, rewritten on
torchvision, fvcore, iopath, yacs and pycocotools. It adds nothing and imports nothing else of this package. Its results
are tested against Detectron2 at commit 02b5c4e.

========== =====================================================================================
config     the defaults, ``configurable`` classes, unsupported keys
structures boxes, masks, instances, padded batches of images
layers     convs with norm and activation, norms, ROIAlign, NMS, mask pasting
modeling   backbones, proposal generators, RoI heads, meta architectures
data       dataset catalogs, transforms, mappers, samplers, loaders
evaluation average precision by VOC's and COCO's rules, on one or several processes
solver     optimizers and learning rate schedules
checkpoint saving and loading models and training state
engine     arguments, set-up and processes of a training program
utils      process groups, registries, loggers, seeds, the event storage
========== =====================================================================================
"""
