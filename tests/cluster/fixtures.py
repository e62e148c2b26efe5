"""Fixtures: a control plane, a cluster with nodes, a namespace of a test's own. A pytest plugin (see tests/conftest.py).

A test that uses `control_plane` or `cluster`, itself or through another fixture, runs inside that cluster's network, with
KUBECONFIG set: it reaches the API server, services and pods as a pod does, and nothing outside. All other tests of the
session run where pytest was started.
"""

import os
import re
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.cluster import doctor, images, network
from tests.cluster.cluster import Cluster, sweep
from tests.cluster.layout import TRAINER_IMAGE
from tests.cluster.processes import ClusterError

NODES = {"control_plane": 0, "cluster": 2}
"""The fixtures, and how many nodes each has."""
LOGS = Path(__file__).resolve().parents[2] / "runs" / "cluster-logs"
MOST_SAVED = 5
"""Of how many failed tests the logs are kept: when more fail, they do so for one reason."""


@dataclass
class Session:
    """What the fixtures share: the clusters that run, and the network that the tests are in."""

    missing: dict[str, str] = field(default_factory=dict)
    """What stands in the way of a fixture."""
    running: dict[str, Cluster] = field(default_factory=dict)
    where: str | None = None
    """The fixture in whose network the tests are; None: where pytest was started."""
    own_network: int | None = None
    own_environment: dict[str, str | None] = field(default_factory=dict)
    saved: list[Path] = field(default_factory=list)

    def go(self, name: str | None) -> None:
        """Into that fixture's network, or home."""
        if name == self.where:
            return
        if self.own_network is None:
            self.own_network = network.hold_own()
        if self.where is not None:
            network.move(self.own_network)
            _set(self.own_environment)
        if name is not None:
            cluster = self.running[name]
            self.own_environment = {key: os.environ.get(key) for key in cluster.environment}
            cluster.enter()
            _set(cluster.environment)
        self.where = name

    def save(self, name: str, cluster: Cluster) -> None:
        if len(self.saved) < MOST_SAVED:
            folder = LOGS / f"{time.strftime('%m%d-%H%M%S')}-{os.getpid()}-{_slug(name)}"
            self.saved.append(cluster.save_logs(folder))


KEY = pytest.StashKey[Session]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[KEY] = Session()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds what the tests at hand need, here, where no test's time limit runs and the terminal shows why it takes long."""
    if session.config.option.collectonly:
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    for name in {name for item in session.items if (name := _used(item))}:
        try:
            doctor.prepare(with_nodes=NODES[name] > 0, say=reporter.write_line if reporter else print)
            if NODES[name]:
                images.shown_places()
        except (doctor.MissingError, ClusterError) as error:
            session.config.stash[KEY].missing[name] = str(error)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Each test to its place. A cluster that does not run yet takes its first test in when it is up."""
    session = item.config.stash[KEY]
    name = _used(item)
    session.go(name if name in session.running else None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What the cluster knows of a failed test, while its objects are still there."""
    report = yield
    session = item.config.stash[KEY]
    cluster = session.running.get(_used(item) or "")
    if report.failed and report.when != "teardown" and cluster is not None:
        session.save(item.name, cluster)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for folder in config.stash[KEY].saved:
        terminalreporter.write_line(f"the cluster's logs, events, pods and jobs: {folder}")


@pytest.fixture(scope="session")
def control_plane(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """An API server with its controllers and scheduler, and no node: what happens to pods is up to the test."""
    yield from _serve(request.config.stash[KEY], "control_plane")


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Two real nodes with eight GPUs each (in name), the image TRAINER_IMAGE, and an S3 server that all can reach."""
    yield from _serve(request.config.stash[KEY], "cluster")


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of this test's own, on whichever of the clusters it uses."""
    used = _used(request.node) or "control_plane"
    cluster: Cluster = request.getfixturevalue(used)
    name = f"{_slug(request.node.name)[:40].strip('-')}-{os.urandom(3).hex()}"
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


def _serve(session: Session, name: str) -> Iterator[Cluster]:
    if name in session.missing:
        if os.environ.get("CI") == "true":
            pytest.fail(session.missing[name], pytrace=False)
        pytest.skip(session.missing[name])
    session.go(None)
    sweep()
    cluster = _start(session, name)
    session.running[name] = cluster
    session.go(name)
    try:
        yield cluster
    finally:
        session.go(None)
        del session.running[name]
        ended = cluster.unasked()
        if ended:
            session.save(name, cluster)
        cluster.down()
    if ended:
        pytest.fail("programs of the cluster ended, though no test asked for it: " + "; ".join(ended), pytrace=False)


def _start(session: Session, name: str) -> Cluster:
    full = f"comd-{name.replace('_', '-')}-{os.getpid()}"
    try:
        cluster = Cluster.up(full, nodes=NODES[name], owned=True)
        if NODES[name]:
            cluster.host_image(TRAINER_IMAGE)
    except BaseException:
        half = Cluster.find(full)
        if half is not None:
            session.save(name, half)
            half.down()
        raise
    return cluster


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _used(item: pytest.Item) -> str | None:
    """The fixture by which a test uses a cluster. One test uses one cluster."""
    names = getattr(item, "fixturenames", ())
    return next((name for name in ("cluster", "control_plane") if name in names), None)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
