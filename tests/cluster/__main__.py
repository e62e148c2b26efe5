"""The test cluster by hand.

    up [--nodes N | --control-plane-only] [--gpus N]   start it, wait until it is usable
    down                            stop everything, remove every trace
    status                          processes, memory, nodes
    exec -- COMMAND ...             run inside its network, with KUBECONFIG set and its kubectl first on PATH
    load ARCHIVE ...                import archives of images on every node
    host-image NAME                 an image whose files are this machine's
    upload FOLDER s3://BUCKET/PREFIX  bring a folder into its S3 server, whose bucket is made
    stop-node N, start-node N       cut a node's power, and give it back
    doctor                          what this machine lacks, a line each

All of it may be repeated. Several clusters run side by side, each with a --name of its own.
"""

import argparse
import os
import sys
from pathlib import Path

from tests.cluster import doctor, lifecycle, network
from tests.cluster.cluster import GPUS, Cluster
from tests.cluster.layout import TRAINER_IMAGE
from tests.cluster.processes import ClusterError


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", default="comd", help="of the network namespace and the cgroup (default: comd)")
    parser.add_argument("--state", type=Path, help="folder for all it writes (default: one in the temporary directory)")
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("up")
    count = start.add_mutually_exclusive_group()
    count.add_argument("--nodes", type=int, default=2, help="(default: 2)")
    count.add_argument("--control-plane-only", action="store_const", dest="nodes", const=0)
    one = commands.add_parser("start-node")
    for command in (start, one):
        command.add_argument("--gpus", type=int, default=GPUS, help=f"nvidia.com/gpu of each node (default: {GPUS})")
    for command in (one, commands.add_parser("stop-node")):
        command.add_argument("number", type=int)
    for name in ("down", "status", "doctor"):
        commands.add_parser(name)
    commands.add_parser("exec").add_argument("argv", nargs=argparse.REMAINDER)
    commands.add_parser("load").add_argument("archive", nargs="+", type=Path)
    commands.add_parser("host-image").add_argument("image")
    upload = commands.add_parser("upload")
    upload.add_argument("folder", type=Path)
    upload.add_argument("uri")
    return parser.parse_args()


def execute(cluster: Cluster, argv: list[str]) -> None:
    """Becomes the command."""
    command = argv[1:] if argv[:1] == ["--"] else argv
    if not command:
        raise ClusterError("exec: no command")
    own = str(Path(cluster.layout.program("kubectl")).parent)
    path = os.pathsep.join([own, os.environ.get("PATH", os.defpath)])
    whole = network.within(cluster.layout, *command)
    os.execvpe(whole[0], whole, {**os.environ, **cluster.environment, "PATH": path})


def started(cluster: Cluster) -> str:
    """How to use it. Its addresses are there inside its network alone."""
    me = f"{Path(sys.executable)} -m tests.cluster"
    if cluster.layout.name != "comd":
        me += f" --name {cluster.layout.name}"
    lines = {f"{me} exec -- bash": "a shell in its network, with kubectl and KUBECONFIG"}
    if cluster.layout.with_nodes:
        lines[f"{me} host-image {TRAINER_IMAGE}"] = "an image of this machine's files: operator and trainer"
        lines[f"{me} upload FOLDER s3://BUCKET/PREFIX"] = "into its S3 server"
    lines[f"{me} down"] = "stop everything, remove every trace"
    width = max(map(len, lines))
    told = [f"{command:{width}}  # {text}" for command, text in lines.items()]
    if cluster.layout.with_nodes:
        s3 = cluster.s3
        told.append(f"S3: {s3.endpoint}, region us-east-1, keys {s3.access_key} and {s3.secret_key}")
    return "\n".join(told)


def main() -> int:
    given = arguments()
    if given.command == "doctor":
        lines, fine = doctor.report()
        print("\n".join(lines))
        return 0 if fine else 1
    if given.command == "up":
        print(started(Cluster.up(given.name, nodes=given.nodes, gpus=given.gpus, state=given.state)))
        return 0
    cluster = Cluster.find(given.name, given.state)
    if cluster is None or (not cluster.layout.machines() and given.command != "down"):
        print("down")
        return 0 if given.command == "down" else 1
    match given.command:
        case "down":
            cluster.down()
        case "status":
            lines, fine = lifecycle.status(cluster.layout)
            print("\n".join(lines))
            return 0 if fine else 1
        case "exec":
            execute(cluster, given.argv)
        case "load":
            cluster.load(*given.archive)
        case "host-image":
            cluster.host_image(given.image)
        case "upload":
            here = [cluster.layout.name, str(cluster.layout.state), str(given.folder), given.uri]
            execute(cluster, [sys.executable, "-m", "tests.cluster.upload", *here])
        case "stop-node":
            cluster.stop_node(given.number)
        case "start-node":
            cluster.gpus = given.gpus
            cluster.start_node(given.number)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ClusterError, doctor.MissingError) as problem:
        sys.exit(f"cluster: {problem}")
