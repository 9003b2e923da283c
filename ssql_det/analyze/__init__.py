"""Floor 2: what few bits do to weights and features, as pure functions, drawings and a page.

========  ==========================================================================
terms     a quantized network's distance from its target, in three parts
weights   ranges, tails and rounding errors of each layer
tsne      a map of features in the plane
drawing   such maps side by side, one for each bit-width
analysis  what is found of one checkpoint
tables    all of it as CSV
page      all of it as a page
========  ==========================================================================

What brings a checkpoint and images to them is :mod:`ssql_det.pretrain.analyzing`.
"""
