"""Views of timm's data sets: with images that stay in memory, and with each image's number instead of its class."""
from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset, IterableDataset

__all__ = ['CachedImages', 'NumberedImages']


class CachedImages(Dataset[Any]):
    """A data set of timm's or torchvision's that decodes each image once and keeps it; what is done to it is done anew.

    Args:
        images: The data set; it has no transform yet.

    Raises:
        ValueError: if its images have no numbers by which they could be found again.
    """

    def __init__(self, images: Any) -> None:
        if isinstance(images, IterableDataset):
            raise ValueError(f'cache_images needs images with numbers, which a {type(images).__name__} does not have')
        self.images = images
        self.decoded: list[tuple[Any, Any] | None] = [None] * len(images)
        self.transform: Any = None  # timm's loader sets it

    def __len__(self) -> int:
        return len(self.decoded)

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        found = self.decoded[number]
        if found is None:
            found = self.decoded[number] = self.images[number]
        image, target = found
        return image if self.transform is None else self.transform(image), target


class NumberedImages(Dataset[Any]):
    """A data set of timm's that gives each image's number instead of its class."""

    def __init__(self, images: Any) -> None:
        self.images = images

    @property
    def transform(self) -> Any:
        """Of the data set, which timm's loader sets."""
        return self.images.transform

    @transform.setter
    def transform(self, transform: Any) -> None:
        self.images.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        return self.images[number][0], number
