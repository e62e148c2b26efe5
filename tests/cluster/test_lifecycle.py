"""A cluster leaves no trace and touches nothing that is not its own; what is missing is said in one line."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import doctor, fixtures, programs
from tests.cluster.cluster import Cluster, sweep
from tests.cluster.images import opened_folders
from tests.cluster.layout import Layout, default_state, forsaken
from tests.cluster.processes import ClusterError, alive, start_time, wait

ROOT = Path(__file__).resolve().parents[2]
LOGS_LINE = "the cluster's logs, events, pods and jobs: "


def traces(name: str) -> list[Path]:
    places = [default_state(name), Path("/run/netns") / name, *Path("/sys/fs/cgroup").glob(name)]
    return [place for place in [*places, *Path("/sys/fs/cgroup").glob(f"*/{name}")] if place.exists()]


@pytest.mark.parametrize("command", ["up", "down", "status"])
def test_a_folder_that_it_did_not_make_is_left_alone(tmp_path: Path, command: str) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    arguments = [sys.executable, "-m", "tests.cluster", "--state", str(tmp_path), command]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"cluster: {tmp_path} was not made by this program")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_another_clusters_folder_is_left_alone(tmp_path: Path) -> None:
    Layout("one", tmp_path / "state", {}).save()
    with pytest.raises(ClusterError, match="belongs to the cluster one"):
        Cluster.find("two", tmp_path / "state")


def test_another_checkouts_cluster_is_left_alone(control_plane: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.cluster.cluster.ROOT", Path("/somewhere/else"))
    with pytest.raises(ClusterError, match=f"is up, started from {ROOT}, whose files its pods see; use another --name"):
        Cluster.up(control_plane.layout.name, nodes=0)


def test_two_run_side_by_side_and_leave_nothing(control_plane: Cluster) -> None:
    name = f"comd-second-{os.getpid()}"
    second = Cluster.up(name, nodes=0, owned=True)
    pids = [pid for machine in second.layout.machines() if (pid := second.layout.init(machine))]
    try:
        second.kubectl("create", "namespace", "only-here")
        assert "only-here" not in control_plane.kubectl("get", "namespaces")
        assert traces(name)
    finally:
        second.down()
    assert traces(name) == []
    assert [pid for pid in pids if start_time(pid)] == []
    assert Cluster.find(name) is None


@pytest.fixture
def killed_session(control_plane: Cluster) -> Iterator[Layout]:
    """What is left when a test process is killed without having taken its cluster down."""
    assert control_plane.kubeconfig.exists()
    name = f"comd-killed-{os.getpid()}"
    code = f"from tests.cluster.cluster import Cluster as C; C.up({name!r}, nodes=0, owned=True); input()"
    with subprocess.Popen(
        [sys.executable, "-u", "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            assert any("controllers work" in line for line in process.stdout)
        finally:
            process.send_signal(signal.SIGKILL)
    cluster = Cluster.find(name)
    assert cluster is not None
    yield cluster.layout
    cluster.down()


def test_a_cluster_ends_with_its_test_process_and_the_next_session_sweeps_up(killed_session: Layout) -> None:
    wait("its processes gone", lambda: not killed_session.machines(), 30)
    assert killed_session in forsaken()
    sweep()
    assert traces(killed_session.name) == []


def test_a_service_account_has_its_own_rights_and_no_others(control_plane: Cluster, namespace: str) -> None:
    control_plane.kubectl("-n", namespace, "create", "serviceaccount", "reader")
    control_plane.kubectl("-n", namespace, "create", "role", "reader", "--verb=get", "--resource=pods")
    binding = ("create", "rolebinding", "reader", "--role=reader", f"--serviceaccount={namespace}:reader")
    control_plane.kubectl("-n", namespace, *binding)
    kubeconfig = control_plane.kubeconfig_for(user="reader", namespace=namespace)
    assert kubeconfig.stat().st_mode & 0o077 == 0

    def may(verb: str) -> str:
        # The administrator's kubeconfig comes first on the command line; the last one counts.
        return control_plane.kubectl(f"--kubeconfig={kubeconfig}", "auth", "can-i", verb, "pods", check=False).split()[
            0
        ]

    assert (may("get"), may("delete")) == ("yes", "no")


FAILING = """
import os, signal
from tests.cluster import lifecycle

def test_fails(control_plane, namespace):
    os.kill(lifecycle.program_pids(control_plane.layout, "control")["kube-scheduler"], signal.SIGKILL)
    control_plane.kubectl("-n", namespace, "create", "job", "evidence", "--image=i")
    assert False
"""


def test_logs_of_a_failed_test_are_kept_and_an_unasked_end_fails_the_session(
    tmp_path: Path, control_plane: Cluster
) -> None:
    assert control_plane.unasked() == []
    (tmp_path / "test_it.py").write_text(FAILING)
    options = ["-p", "tests.cluster.fixtures", "-p", "no:cacheprovider", f"--rootdir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    folders = [Path(line.removeprefix(LOGS_LINE)) for line in done.stdout.splitlines() if line.startswith(LOGS_LINE)]
    try:
        assert "1 failed, 1 error" in done.stdout
        assert "kube-scheduler ended: -9" in done.stdout
        assert "name: evidence" in (folders[0] / "objects.yaml").read_text()
        assert (folders[0] / "logs" / "control.kube-apiserver.log").stat().st_size > 0
    finally:
        for folder in folders:
            subprocess.run(["rm", "-r", str(folder)], check=True)


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with nothing on it."""
    monkeypatch.setattr(programs, "search_path", lambda: str(tmp_path))
    monkeypatch.setattr(programs, "CNI_FOLDERS", ())
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("COMD_TEST_BIN", "KUBEBUILDER_ASSETS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("bare")
def test_the_doctor_says_in_a_line_what_is_missing_and_what_is_not_run() -> None:
    with pytest.raises(doctor.MissingError) as caught:
        doctor.prepare(with_nodes=True, say=print)
    line = str(caught.value)
    assert line.startswith("no test cluster, so what needs nodes and pods is not run: not root, no apt-get to install ")
    for word in ("containerd", "runc", "no Go to build etcd", "no C compiler"):
        assert word in line
    assert "\n" not in line
    lines, fine = doctor.report()
    assert (len(lines), fine) == (2, False)


APT = """#!/bin/sh
echo "$1" >> "$0.log"
case $1 in update) touch "$0.lists";; install) test -e "$0.lists" || exit 100;; esac
"""


def test_lists_of_packages_are_read_only_when_one_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apt = tmp_path / "apt-get"
    apt.write_text(APT)
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    doctor.install(["runc"])
    doctor.install(["runc"])
    assert (tmp_path / "apt-get.log").read_text().split() == ["install", "update", "install", "install"]


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_what_is_missing_skips_on_a_laptop_and_fails_in_ci(
    ci: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", ci)
    session = fixtures.Session(missing={"cluster": "no test cluster: not root"})
    with pytest.raises(outcome, match="not root"):
        next(fixtures._serve(session, "cluster"))


def test_a_program_of_another_minor_version_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMD_TEST_BIN", str(tmp_path))
    program = tmp_path / "kubectl"
    for version, taken in (("v1.32.4", False), (programs.version(), True)):
        program.write_text(f"#!/bin/sh\necho Client Version: {version}\n")
        program.chmod(0o755)
        assert (programs.find("kubectl") == str(program)) is taken


def test_folders_that_only_their_owner_may_enter_are_open_in_pods(tmp_path: Path) -> None:
    deep = tmp_path / "home" / "checkout" / "src"
    deep.mkdir(parents=True)
    (tmp_path / "home").chmod(0o700)
    deep.chmod(0o750)
    opened = opened_folders([deep])
    found = {path: oct(entry.mode) for path, entry in opened.items() if path.startswith(str(tmp_path / "home")[1:])}
    assert found == {str(tmp_path / "home")[1:]: "0o755", str(deep)[1:]: "0o755"}


def test_a_pid_that_another_process_got_is_not_the_one_that_was() -> None:
    assert alive(f"{os.getpid()} {start_time(os.getpid())}") == os.getpid()
    assert alive(f"{os.getpid()} 1") is None
