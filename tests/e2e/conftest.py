import shutil
from pathlib import Path

import pytest

from tests.e2e.runs import comd
from tests.e2e.world import make_inputs, manifest, write_manifest


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and tiny models, made once."""
    return make_inputs(tmp_path_factory.mktemp("world") / "inputs")


@pytest.fixture
def work(tmp_path: Path, inputs: Path) -> Path:
    """A work dir whose store holds the inputs."""
    shutil.copytree(inputs, tmp_path / "work" / "store" / "inputs", copy_function=_link)
    return tmp_path / "work"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, inputs: Path) -> Path:
    """The work dir of a whole run that nobody disturbed. Read only."""
    work = tmp_path_factory.mktemp("finished")
    shutil.copytree(inputs, work / "store" / "inputs", copy_function=_link)
    done = comd("run", write_manifest(work / "run.yaml", manifest()), "--work-dir", work)
    assert done.returncode == 0, done.stdout + done.stderr
    (work / "output.txt").write_text(done.stdout)
    return work


def _link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)
