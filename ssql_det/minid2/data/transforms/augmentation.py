"""What an augmentation is: a policy that looks at the input and returns the transform it chose and applied."""

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
    """A subclass has ``get_transform``, whose arguments are attributes of the input; a single one is the image.

    >>> class Mirror(Augmentation):
    ...     def get_transform(self, image):
    ...         return HFlipTransform(image.shape[1])
    >>> transform = Mirror()(AugInput(image))
    """

    input_args: tuple[str, ...] | None = None

    def get_transform(self, *args: Any) -> Transform:
        raise NotImplementedError

    def __call__(self, aug_input: Any) -> Transform:
        """Transform the input in place; the transform can then be applied to what else belongs to it."""
        if self.input_args is None:
            self.input_args = _argument_names(self)
        transform = self.get_transform(*(getattr(aug_input, name) for name in self.input_args))
        assert isinstance(transform, Transform), f"{type(self)}.get_transform must return a Transform, got {transform}"
        aug_input.transform(transform)
        return transform

    def _init(self, params: dict[str, Any] | None = None) -> None:
        """Keep the arguments of an ``__init__``, given as its ``locals()``, as attributes."""
        for name, value in (params or {}).items():
            if name != "self" and not name.startswith("_"):
                setattr(self, name, value)

    def _rand_range(self, low: float = 1.0, high: float | None = None, size: Any = None) -> Any:
        """Uniform from [low, high); with one number, from [0, low)."""
        low, high = (0, low) if high is None else (low, high)
        return np.random.uniform(low, high, [] if size is None else size)

    def __repr__(self) -> str:
        """The call that makes it, without what is at its default."""
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
    """A transform in the place of an augmentation."""

    def __init__(self, tfm: Transform) -> None:
        self.tfm = tfm

    def get_transform(self, *args: Any) -> Transform:
        return self.tfm

    def __repr__(self) -> str:
        return repr(self.tfm)

    __str__ = __repr__


class AugmentationList(Augmentation):
    """One after the other, each on what the one before has made."""

    def __init__(self, augs: Sequence[Augmentation | Transform]) -> None:
        assert all(isinstance(each, (Augmentation, Transform)) for each in augs), augs
        self.augs = [each if isinstance(each, Augmentation) else _Fixed(each) for each in augs]

    def __call__(self, aug_input: Any) -> TransformList:
        return TransformList([each(aug_input) for each in self.augs])

    def __repr__(self) -> str:
        return f"AugmentationList[{', '.join(map(str, self.augs))}]"

    __str__ = __repr__


class AugInput:
    """What is augmented: an image [H, W] or [H, W, C], and if there are any, boxes [N, 4] and labels of pixels [H, W].

    >>> given = AugInput(image, boxes=boxes)
    >>> transform = RandomFlip()(given)
    >>> given.image, given.boxes
    """

    def __init__(self, image: Array, *, boxes: Array | None = None, sem_seg: Array | None = None) -> None:
        assert isinstance(image, np.ndarray), f"an image is a numpy array, got {type(image)}"
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
        raise TypeError(f"{type(augmentation)}.get_transform takes any arguments: give it its own __call__")
    return tuple(parameters)
