"""One folder of tiny models for all tests here."""

from pathlib import Path

import pytest

from tests.tiny import save_tiny_llava


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `MLP/llava`, `Linear/llava` and `tied/llava`."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny_llava(folder / "MLP")
    save_tiny_llava(folder / "Linear", projector="Linear")
    save_tiny_llava(folder / "tied", tied=True)
    return folder


@pytest.fixture
def folder(models: Path, tmp_path: Path) -> Path:
    """An empty folder in which the models are found."""
    for name in ("MLP", "Linear", "tied"):
        (tmp_path / name).symlink_to(models / name)
    return tmp_path
