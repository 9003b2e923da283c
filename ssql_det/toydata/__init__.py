"""Toy data sets of handwritten digits, in the layouts of PASCAL VOC and COCO, made without a download.

========= ====================================================================================
digits    handwritten digits drawn onto backgrounds; crops of one digit
scenes    images of several digits, with exact boxes and masks
layouts   writing scenes in the layouts of VOC and COCO
dataset   the complete folder, made in parallel
========= ====================================================================================
"""
