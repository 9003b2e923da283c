"""Checks whether a data set can be trained on, and reports each problem with its file.

========= ====================================================================================
findings  errors and warnings of a split; can each image be decoded, and has it the annotated size?
voc       annotations in PASCAL VOC's layout
coco      annotations in COCO's layout, or in any COCO-format file
draw      a contact sheet: images with their boxes and masks
========= ====================================================================================
"""
