"""Floor 2: what few bits do to weights and features, as pure functions, drawings and a page.

========  ==========================================================================
tsne      a map of features in the plane
drawing   such maps side by side, one for each bit-width
analysis  what is found of one checkpoint: terms of a quantized network's loss, its layers' weights
page      all of it as a page, and as CSV
========  ==========================================================================

What brings a checkpoint and images to them is :mod:`ssql_det.pretrain.analyze_checkpoints`.
"""
