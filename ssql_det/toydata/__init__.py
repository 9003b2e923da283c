"""Floor 1: images where none can be fetched, in the layouts of the real data sets.

========= ====================================================================================
compose   handwritten digits; one onto a background: ink, scale, rotation, shift, noise; finished crops of one
scenes    several digits in one image, with boxes and masks that fit to the pixel
layouts   scenes as files, in VOC's layout and in COCO's
dataset   the whole folder, made in parallel, whole or absent
========= ====================================================================================
"""
