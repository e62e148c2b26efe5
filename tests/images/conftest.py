"""The builder that these tests use, and the images."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from images.builders import Builder
from tests.images import built


@pytest.fixture(scope="session")
def tool() -> Builder:
    try:
        return built.builder(print)
    except built.MissingError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that images are made of, as it is now."""
    return built.frozen(tmp_path_factory.mktemp("context"))


@pytest.fixture(scope="session")
def operator(tool: Builder, context: Path) -> str:
    """The name of the operator's image, built anew."""
    name = f"{built.REPOSITORY}/operator:one"
    built.build(tool, "operator", name, say=print, root=context)
    return name


@pytest.fixture(scope="session")
def trainer(tool: Builder, context: Path) -> Iterator[str]:
    """The trainer's; it goes when the tests have ended, for it takes much of a disk."""
    name = f"{built.REPOSITORY}/trainer:one"
    built.build(tool, "trainer", name, say=print, root=context)
    yield name
    built.said(*tool.program(), "rmi", "--force", name)
