"""Floor 3: pretraining, from a folder of images to a backbone, and probes of what it has learned.

===========  =============================================================================================
config       every key, with its default; what a config may not say; a network from it
data         images, wherever they are
stream       batches of views, in an order that is a function of the seed
optim        the optimizer and its schedule, a function of progress; LARS
sync_norm    BatchNorm over all processes, also on the CPU
loop         the training, on one page
checkpoint   one file: the backbone for everybody, the rest for a resumed run; a network from it, with its heads
features     a frozen backbone's features, at any bit-width, also of views that differ in each epoch
probe        kNN and linear accuracy; how a linear probe is done: fast, or as published
probing      both, of a checkpoint: one row a bit-width
analyzing    what few bits do to it: terms of its loss, its weights, a map of its features
===========  =============================================================================================

Pretraining and detection meet at a checkpoint file, nowhere else.
"""
