"""Images in, detections out: what commands share that detect on a user's images. Only NumPy and Pillow are imported.

========= ======================================================================
reading   the images that a user names, read as the engine reads them
masks     predicted masks pasted into the image; COCO's run-length encoding
results   the detections of an image; COCO's JSON; pictures as PNG
drawing   boxes, masks and labels drawn on an image
========= ======================================================================
"""
