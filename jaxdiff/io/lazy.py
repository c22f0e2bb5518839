"""Arrays that are made when they are needed, so that files larger than the memory can be read and written."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Lazy:
    """An array that `value` makes each time that it is needed, of this shape and dtype."""

    shape: tuple[int, ...]
    dtype: Any
    value: Callable[[], Any]

    @property
    def size(self) -> int:
        """The number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of all values."""
        return self.size * np.dtype(self.dtype).itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.value(), dtype)

    def __deepcopy__(self, memo: Any) -> "Lazy":
        return self
