"""The effect of low bit-widths on weights and features: pure functions, pictures and a report.

========  ===============================================================================
analysis  loss terms of quantized features, statistics of weights, and the data classes of all results
tsne      t-SNE of features
drawing   a picture of a t-SNE embedding: one panel for each bit-width
page      the report and the CSV files of several analyses
========  ===============================================================================

:mod:`ssql_det.pretrain.analyze_checkpoints` computes an analysis from a checkpoint and images.
"""
