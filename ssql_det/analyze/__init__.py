"""Floor 2: the effect of low bit-widths on weights and features: pure functions, pictures and a report.

========  ===============================================================================
analysis  loss terms of quantized features, statistics of weights, and the data classes for both
tsne      t-SNE of features
drawing   a picture of an embedding: one panel for each bit-width
page      the report and the CSV files of several analyses
========  ===============================================================================

:mod:`ssql_det.pretrain.analyze_checkpoints` computes an analysis from a checkpoint and images.
"""
