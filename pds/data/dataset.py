"""A data set as a run sees it: its name and shape at once, its files only when they are needed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import cached_property, partial
from typing import Annotated, Any, Literal, get_type_hints

from pds.cache import cache_folder
from pds.data.images import ImageSource
from pds.data.statistics import DatasetStatistics, dataset_statistics
from pds.errors import OptionError, PDSError
from pds.options import Range, Shape, checked, fitted, options, options_of

StatisticsImages = Annotated[int, Range(1, 100_000_000)]


@options
class Dataset:
    """A data set.

    Attributes:
        name: its name.
        shape: (C, H, W) of its images.
        source: opens its files.
        statistics_file: statistics that ship with this package ("asset:..."), or None to compute them from the files.
        statistics_images: images to compute them from; the papers use 200.
        reference: reference for its samples, a maker of `pds.evaluation.reference`, or None."""

    name: str
    shape: Shape
    source: Callable[[], ImageSource]
    statistics_file: str | None = None
    statistics_images: StatisticsImages = 200
    reference: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        # Check the options of `source` now. Otherwise a mistake shows only when the files are read.
        opener: Any = self.source.func if isinstance(self.source, partial) else self.source
        made = opener
        if not isinstance(opener, type):
            with contextlib.suppress(Exception):  # a function may have no annotation, or one that is not there
                made = get_type_hints(opener)["return"]
        if isinstance(made, type) and not hasattr(made, "read"):
            raise OptionError("source", f"must open images, and {opener.__qualname__} makes a {made.__name__}")
        if isinstance(self.source, partial):
            known = options_of(self.source.func)
            for name in self.source.keywords.keys() & known.keys():
                fitted(name, self.source.keywords[name], known[name].annotation)

    @cached_property
    def images(self) -> ImageSource:
        """The images; a `PDSError` says what is missing or of another shape."""
        images = self.source()
        if tuple(images.shape) != tuple(self.shape):
            found, asked = list(images.shape), list(self.shape)
            raise PDSError(f"{self.name} images are {found}, not {asked}: set its shape to {found} or take other images")
        return images

    @cached_property
    def statistics(self) -> DatasetStatistics:
        """Statistics for the filters: the shipped file, or computed once and kept in the project's cache."""
        if self.statistics_file is not None:
            statistics = DatasetStatistics.load(self.statistics_file)
            if statistics.provenance["images"] != self.statistics_images:
                raise PDSError(
                    f"{self.statistics_file} is of {statistics.provenance['images']} images, and statistics_images is "
                    f"{self.statistics_images}: leave statistics_file out to compute them from the data set"
                )
            return statistics
        if (count := len(self.images)) < self.statistics_images:
            few = f"{self.name} has {count} images, and statistics_images is {self.statistics_images}"
            raise PDSError(f"{few}: give statistics_images={count}, or more images")
        return dataset_statistics(self.images, self.statistics_images, cache=cache_folder() / "statistics")


@checked
def form_of_dataset(
    source: Callable[..., Callable[[], ImageSource]],
    *,
    name: str,
    shape: Shape,
    resolution: Annotated[int, Range(1, 8192)],
    preprocessing: Literal["ncsnv2", "score_sde"],
    category: str | None = None,
    statistics_file: str | None = None,
    statistics_images: StatisticsImages = 200,
    reference: Callable[..., Any] | None = None,
) -> Dataset:
    """A data set that comes in several forms.

    Args:
        source: called with the form, it checks the form at once and returns an opener of the files, e.g. `pds.data.lsun.LSUN`.
        name: its name.
        shape: (C, H, W) of its images.
        resolution: height and width, in pixels.
        preprocessing: the code that cut and shrank the images for the model: ncsnv2 or score_sde.
        category: category of LSUN: church, tower or bedroom.
        statistics_file: statistics that ship with this package ("asset:..."), or None to compute them from the files.
        statistics_images: images to compute them from; the papers use 200.
        reference: reference for its samples, a maker of `pds.evaluation.reference`, or None.
    """
    form = {"resolution": resolution, "preprocessing": preprocessing} | ({} if category is None else {"category": category})
    return Dataset(name, shape, source(**form), statistics_file, statistics_images, reference)
