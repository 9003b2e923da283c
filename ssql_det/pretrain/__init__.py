"""Pretraining of a backbone on images, and its evaluation by kNN and linear probes.

===================  ===========================================================================================
config               config keys and defaults; checks of values; building the network
data                 image data sets: folders, text files of paths, CIFAR
view_loader          batches of augmented views, in an order that depends only on the seed
optim                the optimizer and its learning-rate schedule
sync_norm            BatchNorm over all processes, also on the CPU
loop                 the training loop
checkpoint           saving, resuming, and reading a checkpoint as a pretrained network
features             features of a frozen backbone, of test images or of augmented views
classifiers          kNN and linear classifiers on features; the protocols of linear evaluation
monitor              kNN evaluation during pretraining
probe_checkpoint     kNN and linear probes of a checkpoint at several bit-widths
analyze_checkpoints  the effect of low bit-widths on a checkpoint: loss terms, weights, t-SNE
===================  ===========================================================================================

Pretraining and detection share nothing but the checkpoint file. A package imports only from packages of lower floors.
"""
