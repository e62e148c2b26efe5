"""`augmentor.chat.image: Overlapping`: which other image shows most of the same things (method section 12, row 21)."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping

from comd_trainer.data.annotations import Annotation


class OverlappingImages:
    """Images of the pool by their annotated objects."""

    def __init__(self, images: Collection[str], annotations: Mapping[str, Annotation]) -> None:
        self._labels = {image: annotations[image].labels for image in sorted(images) if image in annotations}
        self._holders: dict[str, list[str]] = defaultdict(list)
        for image, labels in self._labels.items():
            for label in labels:
                self._holders[label].append(image)

    def choose(self, image: str | None, *, visit: int) -> str | None:
        """The image that shares the most objects with this one (then the smallest rest, then by name); the second best
        when the item is used for the second time, and so on. The image itself when none shares any."""
        shared = Counter(
            other for label in self._labels.get(image or "", ()) for other in self._holders[label] if other != image
        )
        if not shared:
            return image
        ranking = sorted(shared, key=lambda other: (-shared[other], len(self._labels[other]), other))
        return ranking[visit % len(ranking)]
