"""Crops of a corpus as training examples: decoded, manipulated and delivered anew in the loader's workers.

Every example depends on (seed, epoch, index) alone, so neither the number of workers nor a resumed run changes
what the network sees.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from lensborn.datasets.corpus import Crop, split_of
from lensborn.delivery import Delivery, deliver
from lensborn.faces import crop_face, crop_square
from lensborn.photo import UnreadableError, read_photo
from lensborn.pretext.loop import EpochSampler
from lensborn.pretext.manipulations import PRISTINE, draw_manipulation, manipulate

Image = NDArray[np.uint8]

#: Left and right of the five landmarks change places when a face is mirrored.
_MIRRORED = [1, 0, 2, 4, 3]


def split_crops(crops: Sequence[Crop]) -> dict[str, list[Crop]]:
    """The crops with all four tags, by split of their source."""
    splits: dict[str, list[Crop]] = defaultdict(list)
    for crop in crops:
        if np.isfinite(crop.tags).all():
            splits[split_of(crop.source)].append(crop)
    return dict(splits)


def photo_numbers(crops: Sequence[Crop]) -> list[int]:
    """The number of each crop's photograph among those of `crops`, in the order of their names."""
    names = {name: number for number, name in enumerate(sorted({crop.photo for crop in crops}))}
    return [names[crop.photo] for crop in crops]


class PretextDataset(Dataset[dict[str, Tensor]]):
    """Pairs of one face, pristine and manipulated, with the photograph's tags.

    An item is {"pristine", "manipulated": (3, S, S) uint8, "tags": (4,) float64, "photo": () int64}. With
    `delivery` None nothing but the manipulation is random, and its draw is the same in every epoch.
    """

    def __init__(self, crops: Sequence[Crop], size: int, seed: int, delivery: Delivery | None) -> None:
        self.crops = crops
        self.size = size
        self.seed = seed
        self.delivery = delivery
        self.photos = photo_numbers(crops)

    def __len__(self) -> int:
        """Number of crops."""
        return len(self.crops)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Tensor]:
        """The example of `key`: (epoch, index), or an index, which stands for epoch 0."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        rng = np.random.default_rng([self.seed, epoch, index])
        crop = self.crops[index]
        image, landmarks = native_face(crop)
        if self.delivery and rng.random() < 0.5:
            image = np.ascontiguousarray(image[:, ::-1])
            if landmarks is not None:
                landmarks = (landmarks * (-1, 1) + (image.shape[1] - 1, 0))[_MIRRORED]
        name = draw_manipulation(landmarks, min(image.shape[:2]), rng)
        return {
            "pristine": self._example(image, landmarks, PRISTINE, rng),
            "manipulated": self._example(image, landmarks, name, rng),
            "tags": torch.from_numpy(crop.tags),
            "photo": torch.tensor(self.photos[index]),
        }

    def _example(
        self, image: Image, landmarks: NDArray[np.float64] | None, name: str, rng: np.random.Generator
    ) -> Tensor:
        face = manipulate(image, landmarks, name, rng)
        box = (0.0, 0.0, float(face.shape[1]), float(face.shape[0]))
        if self.delivery:
            face = deliver(face, self.delivery, rng)
            side = face.shape[0] * (1 - rng.uniform(0, self.delivery.zoom))
            x, y = rng.uniform(0, face.shape[1] - side), rng.uniform(0, face.shape[0] - side)
            box = (x, y, side, side)
        return torch.from_numpy(crop_face(face, box, self.size, scale=1.0).transpose(2, 0, 1).copy())


def native_face(crop: Crop) -> tuple[Image, NDArray[np.float64] | None]:
    """The crop's pixels and landmarks; a picture that is not cut yet is cut, and not resized.

    Raises UnreadableError, with the name of the file.
    """
    try:
        image = read_photo(crop.file).pixels
    except UnreadableError as error:
        raise UnreadableError(f"{crop.file.name}: {error}; or remove its row from the table") from error
    landmarks = None if crop.landmarks is None else crop.landmarks.astype(np.float64)
    if crop.box is None:
        return image, landmarks
    x, y, side = (round(value) for value in crop_square(crop.box, image.shape[1], image.shape[0]))
    cut = np.ascontiguousarray(image[y : y + side, x : x + side])
    return cut, None if landmarks is None else landmarks - (x, y)


class EpochBatches(EpochSampler):
    """Batches of (epoch, index) of one epoch, from batch `start` on; the same for every process.

    A source gives at most `per_source` crops an epoch (other ones each time), so that a large album does not
    outweigh the world. With several processes each takes every `world`-th example of a batch.
    """

    def __init__(
        self,
        sources: Sequence[str],
        batch: int,
        seed: int,
        per_source: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.groups: dict[str, list[int]] = defaultdict(list)
        for index, source in enumerate(sources):
            self.groups[source].append(index)
        self.batch, self.seed, self.per_source, self.rank, self.world = batch, seed, per_source, rank, world

    def __len__(self) -> int:
        """Batches in a whole epoch; the rest that fills no batch is left for other epochs."""
        return sum(min(len(group), self.per_source) for group in self.groups.values()) // self.batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Batches from `start` on."""
        rng = np.random.default_rng([self.seed, self.epoch])
        chosen = [rng.permutation(self.groups[source])[: self.per_source] for source in sorted(self.groups)]
        order = rng.permutation(np.concatenate(chosen))
        for number in range(self.start, len(self)):
            batch = order[number * self.batch : (number + 1) * self.batch]
            yield [(self.epoch, int(index)) for index in batch[self.rank :: self.world]]
