"""Comparison of what was read with what was written."""

import numpy as np
import torch


def same(read, written):
    """Whether types, layouts and all values are equal, also in nested containers."""
    if type(read) is not type(written):
        return False
    if isinstance(written, torch.Tensor):
        properties = [(tensor.dtype, tensor.shape, tensor.stride(), tensor.requires_grad) for tensor in (read, written)]
        return properties[0] == properties[1] and torch.equal(read, written)
    if isinstance(written, (np.ndarray, np.generic)):
        native = [
            array.dtype.newbyteorder("=") for array in (read, written)
        ]  # NumPy changes the byte order of some arrays when it reads
        return native[0] == native[1] and read.shape == written.shape and np.array_equal(read, written)
    if isinstance(written, dict):
        return list(read) == list(written) and all(same(read[key], written[key]) for key in written)
    if isinstance(written, (list, tuple)):
        return len(read) == len(written) and all(map(same, read, written))
    return read == written
