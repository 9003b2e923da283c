"""Floor 2: what few bits do to weights and features, as pure functions, drawings and a page.

========  ==========================================================================
tsne      maps of features in the plane, drawn side by side
analysis  what is found of one checkpoint: terms of a quantized network's loss, its layers' weights
page      all of it as a page, and as CSV
========  ==========================================================================

What brings a checkpoint and images to them is :mod:`ssql_det.pretrain.analyzing`.
"""
