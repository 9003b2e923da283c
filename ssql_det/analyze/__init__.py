"""Floor 2: the effect of few bits on weights and features, as pure functions, pictures and a report.

========  ===============================================================================
analysis  loss terms of quantized features and statistics of weights; their data classes
tsne      t-SNE of features
drawing   a picture of an embedding: one panel for each bit-width
page      the report of several analyses, and their CSV files
========  ===============================================================================

:mod:`ssql_det.pretrain.analyze_checkpoints` computes an analysis from a checkpoint and images.
"""
