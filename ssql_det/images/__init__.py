"""Images in, detections out: what commands share that detect on a user's images. Nothing here imports torch or OpenCV.

========= ======================================================================
reading   the images that a user names, read as the engine reads them
masks     predicted masks pasted into the image; COCO's run-length encoding
========= ======================================================================
"""
