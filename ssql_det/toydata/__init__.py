"""Floor 1: images where none can be fetched, in the layouts of the real data sets.

========= ====================================================================================
digits    real handwritten digits as smooth alphas, in splits that share none
compose   a digit onto a background: ink, scale, rotation, shift, noise
crops     one digit, finished and labelled: for probes and pretraining
scenes    several digits in one image, with boxes and masks that fit to the pixel
outline   a mask as polygons that rasterize back to it exactly
voc       scenes in VOC's layout
coco      scenes in COCO's layout
dataset   the whole folder, made in parallel, whole or absent
========= ====================================================================================
"""
