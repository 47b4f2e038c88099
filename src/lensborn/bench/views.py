"""What a detector is given: one coded picture with one face, the same for every detector that is compared."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lensborn.faces import Box, crop_face
from lensborn.photo import decode_photo


@dataclass(frozen=True, eq=False)
class View:
    """A picture as a condition of a protocol delivers it.

    `data`: the coded file (JPEG, PNG, ...). `box`: x, y, width, height of the face, in pixels of the upright
    picture. `set`, `name`: of the picture it came from. `condition`: see `bench.protocols`.
    `decoded`: its pixels, where they are known already.
    """

    data: bytes
    box: Box
    set: str
    name: str
    condition: str
    decoded: NDArray[np.uint8] | None = field(default=None, repr=False)

    @cached_property
    def pixels(self) -> NDArray[np.uint8]:
        """The decoded, upright picture (H, W, 3) uint8 RGB."""
        return decode_photo(self.data).pixels if self.decoded is None else self.decoded

    def crop(self, size: int) -> NDArray[np.uint8]:
        """THE face crop, (size, size, 3) uint8 RGB; see `faces.crop_face`."""
        return crop_face(self.pixels, self.box, size)
