"""A data set as a run sees it: its name and shape at once, its files only when something asks for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pds.cache import cache_folder
from pds.data.images import ImageSource
from pds.data.statistics import DatasetStatistics, dataset_statistics
from pds.errors import PDSError


@dataclass
class Dataset:
    """A data set.

    Attributes:
        name: its name.
        shape: (C, H, W) of its images.
        source: opens its files.
        statistics_file: statistics that ship with this package ("asset:..."), or None to compute them from the files.
        statistics_images: images to compute them from; the papers use 200.
        reference: what its samples are compared with: a maker of `pds.evaluation.reference`, or None.
    """

    name: str
    shape: Sequence[int]
    source: Callable[[], ImageSource]
    statistics_file: str | None = None
    statistics_images: int = 200
    reference: Callable[..., Any] | None = None

    @cached_property
    def images(self) -> ImageSource:
        """The images; a `PDSError` says what is missing or of another shape."""
        images = self.source()
        if tuple(images.shape) != tuple(self.shape):
            found, asked = list(images.shape), list(self.shape)
            raise PDSError(f"{self.name} images are {found}, not {asked}: set dataset.shape={found} or take other images")
        return images

    @cached_property
    def statistics(self) -> DatasetStatistics:
        """Statistics for the filters: the shipped file, or computed once and kept in the project's cache."""
        if self.statistics_file is not None:
            statistics = DatasetStatistics.load(self.statistics_file)
            if statistics.provenance["images"] != self.statistics_images:
                raise PDSError(
                    f"{self.statistics_file} is of {statistics.provenance['images']} images, dataset.statistics_images is "
                    f"{self.statistics_images}: set dataset.statistics_file=null to compute them from the data set"
                )
            return statistics
        return dataset_statistics(self.images, self.statistics_images, cache=cache_folder() / "statistics")


def form_of_dataset(
    source: Callable[..., Callable[[], ImageSource]],
    *,
    name: str,
    shape: Sequence[int],
    statistics_file: str | None = None,
    statistics_images: int = 200,
    reference: Callable[..., Any] | None = None,
    **form: Any,
) -> Dataset:
    """A data set that comes in several forms; arguments as those of `Dataset`.

    Args:
        source: called with the form it checks it at once, and gives what opens the files, e.g. `pds.data.lsun.LSUN`.
        form: which form it is: resolution, preprocessing, category.
    """
    return Dataset(name, shape, source(**form), statistics_file, statistics_images, reference)
