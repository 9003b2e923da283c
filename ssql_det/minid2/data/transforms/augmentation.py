"""The augmentation base class: it chooses a transform for an input, applies it and returns it."""

from __future__ import annotations

import inspect
import pprint
from collections.abc import Sequence
from typing import Any

import numpy as np
from fvcore.transforms.transform import Transform, TransformList
from numpy.typing import NDArray

__all__ = ["AugInput", "Augmentation", "AugmentationList"]

Array = NDArray[Any]


class Augmentation:
    """A subclass defines ``get_transform``, whose arguments are attributes of the input; a single one is the image.

    >>> from fvcore.transforms.transform import HFlipTransform
    >>> class Mirror(Augmentation):
    ...     def get_transform(self, image):
    ...         return HFlipTransform(image.shape[1])
    >>> aug_input = AugInput(np.array([[1, 2, 3]]))
    >>> transform = Mirror()(aug_input)
    >>> aug_input.image
    array([[3, 2, 1]])
    """

    input_args: tuple[str, ...] | None = None

    def get_transform(self, *args: Any) -> Transform:
        raise NotImplementedError

    def __call__(self, aug_input: Any) -> Transform:
        """Transform the input in place and return the transform, for use on its annotations."""
        if self.input_args is None:
            self.input_args = _argument_names(self)
        transform = self.get_transform(*(getattr(aug_input, name) for name in self.input_args))
        assert isinstance(transform, Transform), f"{type(self)}.get_transform must return a Transform, got {transform}"
        aug_input.transform(transform)
        return transform

    def _init(self, params: dict[str, Any] | None = None) -> None:
        """Set the arguments of an ``__init__``, given as its ``locals()``, as attributes."""
        for name, value in (params or {}).items():
            if name != "self" and not name.startswith("_"):
                setattr(self, name, value)

    def _rand_range(self, low: float = 1.0, high: float | None = None, size: Any = None) -> Any:
        """A uniform random number from [low, high), or from [0, low) without ``high``."""
        low, high = (0, low) if high is None else (low, high)
        return np.random.uniform(low, high, [] if size is None else size)

    def __repr__(self) -> str:
        """The constructor call, without arguments that have their default."""
        shown = []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or not hasattr(self, name):
                return super().__repr__()
            value = getattr(self, name)
            if value is not parameter.default:
                lines = pprint.pformat(value).splitlines()
                shown.append(f"{name}={lines[0] if len(lines) == 1 else '...'}")
        return f"{type(self).__name__}({', '.join(shown)})"

    __str__ = __repr__


class _Fixed(Augmentation):
    """An augmentation that always applies one transform."""

    def __init__(self, tfm: Transform) -> None:
        self.tfm = tfm

    def get_transform(self, *args: Any) -> Transform:
        return self.tfm

    def __repr__(self) -> str:
        return repr(self.tfm)

    __str__ = __repr__


class AugmentationList(Augmentation):
    """Applies augmentations one after the other."""

    def __init__(self, augs: Sequence[Augmentation | Transform]) -> None:
        assert all(isinstance(each, (Augmentation, Transform)) for each in augs), augs
        self.augs = [each if isinstance(each, Augmentation) else _Fixed(each) for each in augs]

    def __call__(self, aug_input: Any) -> TransformList:
        return TransformList([each(aug_input) for each in self.augs])

    def __repr__(self) -> str:
        return f"AugmentationList[{', '.join(map(str, self.augs))}]"

    __str__ = __repr__


class AugInput:
    """The input of an augmentation: an image [H, W] or [H, W, C], optionally boxes [N, 4] and pixel labels [H, W]."""

    def __init__(self, image: Array, *, boxes: Array | None = None, sem_seg: Array | None = None) -> None:
        assert isinstance(image, np.ndarray), f"an image must be a numpy array, got {type(image)}"
        assert image.ndim in (2, 3), image.shape
        self.image = image
        self.boxes = boxes
        self.sem_seg = sem_seg

    def transform(self, tfm: Transform) -> None:
        self.image = tfm.apply_image(self.image)
        if self.boxes is not None:
            self.boxes = tfm.apply_box(self.boxes)
        if self.sem_seg is not None:
            self.sem_seg = tfm.apply_segmentation(self.sem_seg)

    def apply_augmentations(self, augmentations: Sequence[Augmentation | Transform]) -> TransformList:
        return AugmentationList(augmentations)(self)


def _argument_names(augmentation: Augmentation) -> tuple[str, ...]:
    parameters = inspect.signature(augmentation.get_transform).parameters
    if len(parameters) == 1:
        return ("image",)
    if any(each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD) for each in parameters.values()):
        raise TypeError(f"{type(augmentation)}.get_transform takes *args or **kwargs: define __call__ as well")
    return tuple(parameters)
