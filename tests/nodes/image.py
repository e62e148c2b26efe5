"""The image that the pods of these tests run."""

import os
import sys
from pathlib import Path

from tests.cluster import images
from tests.cluster.cluster import Cluster
from tests.cluster.layout import TRAINER_IMAGE, short_hash

IMAGE = "localhost/comd-trainer:one-thread"
"""TRAINER_IMAGE with one thread for each rank: two pods on two cores would otherwise wait for each other's threads, and numbers that
are compared are then added up in the same order wherever they come from."""


OWN_PLACES = (Path("/tmp"), Path("/scratch"), Path("/dev"))
"""Where a trainer's pod has folders of its own, which hide the image's."""


def hidden_place() -> Path | None:
    """What pods of this image must find and would not, if anything."""
    hidden = (place for place in images.shown_places() if any(place.is_relative_to(own) for own in OWN_PLACES))
    return next(hidden, None)


def provide(cluster: Cluster) -> None:
    """Puts it on every node that runs: the layers of TRAINER_IMAGE, which lie there already, under a second name."""
    variables = {
        "PATH": os.pathsep.join([f"{sys.prefix}/bin", os.environ.get("PATH", os.defpath)]),
        "HOME": str(Path.home()),
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
    }
    layers = [{f"host-image.{short_hash(TRAINER_IMAGE)}": images.Entry(b"")}, images.opened_folders()]
    archive = images.archive(IMAGE, layers, ["/bin/sh"], variables)
    for node in cluster.layout.nodes():
        images.ctr(cluster.layout, node, "images", "import", "-", stdin=archive)
