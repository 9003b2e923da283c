"""Floor 1: is a data set, real or toy, fit to train on? Checked in place, every fault named with its file.

========= ====================================================================================
findings  what is found: faults that would end a training, and things worth knowing
images    can every image be decoded, and is it of the size that its annotation says?
voc       PASCAL VOC's layout
coco      COCO's layout, or any COCO-format file with its images
draw      a contact sheet: images with their boxes and masks
========= ====================================================================================
"""
