"""How many bytes autograd's graphs hold."""

import torch


class SavedBytes:
    """The bytes that graphs hold, now and at most. Tensors that share memory count once.

    >>> counter, x = SavedBytes(), torch.ones(3, requires_grad=True)
    >>> with counter.counting():
    ...     x.exp().sum().backward()
    >>> counter.now, counter.most
    (0, 12)
    """

    def __init__(self):
        self.holders, self.now, self.most = {}, 0, 0

    def counting(self):
        return torch.autograd.graph.saved_tensors_hooks(lambda tensor: _Saved(tensor, self), lambda saved: saved.tensor)

    def change_holders(self, tensor, change):
        storage = tensor.untyped_storage()
        before = self.holders.get(storage.data_ptr(), 0)
        self.holders[storage.data_ptr()] = before + change
        if 0 in (before, before + change):
            self.now += change * storage.nbytes()
            self.most = max(self.most, self.now)


class _Saved:
    """A tensor that a graph holds until its backward pass has used it."""

    def __init__(self, tensor, counter):
        self.tensor, self.counter = tensor, counter
        counter.change_holders(tensor, 1)

    def __del__(self):
        self.counter.change_holders(self.tensor, -1)
