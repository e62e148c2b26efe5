"""What a trainer measures of itself: every metric that is counted while phases run, and the record that each process keeps of them.

A process counts in memory: a dictionary behind a lock, about a microsecond each time. Ranks hand their records over to the supervisor
through a file, twice a second; the supervisor, which counts as well, adds up those of its node when somebody asks (`server.py`). What is
the same on all ranks (steps, the loss) is counted by the first rank alone, and so is in its pod's metrics and in no other's.
"""

import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Key = tuple[str, tuple[str, ...]]
"""Name of a metric, and the values of its labels in their order."""
Values = dict[Key, float]

HAND_OVER_SECONDS = 0.5
_PATTERN = "metrics-*.json"


@dataclass(frozen=True, kw_only=True)
class Metric:
    name: str
    """As it is exported, a counter without its `_total`."""
    text: str
    labels: tuple[str, ...] = ()
    """Beside `stage` and `phase`, which the supervisor adds. Each has few values, and none is a run's name."""
    kind: Literal["counter", "gauge"] = "counter"
    joined: Literal["sum", "max"] = "sum"
    """What a pod with several ranks says."""
    stays: bool = True
    """Whether a phase's last value is still told when later phases of the stage run."""


_BY_RANK_0 = "Of the first rank."

STEPS = Metric(name="comd_steps", text="Optimizer steps.")
TOKENS = Metric(
    name="comd_tokens", text="Tokens trained on, of all ranks: prompts, images and answers, without padding."
)
SUPERVISED_TOKENS = Metric(
    name="comd_supervised_tokens", text="Tokens of answers, which the loss is taken over, of all ranks."
)
IMAGES = Metric(name="comd_images", text="Images shown to a model: in training, or in a request that was answered.")
DROPPED_ROWS = Metric(name="comd_dropped_rows", text="Training rows that were left out because they can't be used.")
MODEL_FLOPS = Metric(
    name="comd_model_flops",
    text="Floating-point operations that training needed, of all ranks, as estimated from weights and tokens (without attention).",
)
PEAK_FLOPS = Metric(
    name="comd_peak_flops_per_second",
    text="What the devices of all ranks can do in half precision; only where it is known.",
    kind="gauge",
    stays=False,
)
LOSS = Metric(name="comd_loss", text="Loss per supervised token of the newest step.", kind="gauge")
LEARNING_RATE = Metric(name="comd_learning_rate", text="Learning rate of the newest step.", kind="gauge")
GRADIENT_NORM = Metric(
    name="comd_gradient_norm", text="Gradient norm of the newest step, before clipping.", kind="gauge"
)
DATA_WAIT = Metric(name="comd_data_wait_seconds", text=f"Time in which training waited for its next rows. {_BY_RANK_0}")
CHECKPOINTS = Metric(name="comd_checkpoints", text="Checkpoints that were saved or loaded.", labels=("direction",))
CHECKPOINT_BYTES = Metric(
    name="comd_checkpoint_bytes", text="Bytes of checkpoints, of all ranks of the pod.", labels=("direction",)
)
CHECKPOINT_SECONDS = Metric(
    name="comd_checkpoint_seconds",
    text=f"Time in which training stood still for checkpoints, the store's part included. {_BY_RANK_0}",
    labels=("direction",),
)
TRANSFERS = Metric(
    name="comd_transfers", text="Files that were read from the store or written to it.", labels=("direction",)
)
TRANSFER_BYTES = Metric(
    name="comd_transfer_bytes",
    text="Bytes read from the store or written to it. What a folder as a store gives in place is not moved and not counted.",
    labels=("direction",),
)
TRANSFER_SECONDS = Metric(
    name="comd_transfer_seconds",
    text="Time of transfers; that of several side by side is added up.",
    labels=("direction",),
)
STORE_ERRORS = Metric(
    name="comd_store_errors",
    text="Requests to the store that were repeated, and operations that failed for good.",
    labels=("end",),
)
ANSWERS = Metric(
    name="comd_answers",
    text="Answers that were asked of a model, and those that the cache had. Role likelihood: answers that were scored, not written.",
    labels=("role", "source"),
)
GENERATED_TOKENS = Metric(
    name="comd_generated_tokens",
    text="Tokens that models wrote; of an endpoint as far as it tells.",
)
ENDPOINT_ERRORS = Metric(
    name="comd_endpoint_errors",
    text="Requests that an endpoint did not answer and that are made again.",
    labels=("role", "reason"),
)
JUDGE_REPLIES = Metric(
    name="comd_judge_replies",
    text="Replies of the judge that were read, and of those that could not be, what followed. Cached ones are not counted.",
    labels=("result",),
)
CANDIDATES = Metric(
    name="comd_candidates",
    text="New instructions that the augmentor proposed, and why those that were rejected were; reason none: accepted.",
    labels=("branch", "result", "reason"),
)
ROUND_ITEMS = Metric(
    name="comd_round_items",
    text="Counts of the round, as status.stages has them, once their phase is done.",
    labels=("kind",),
    kind="gauge",
)
SCORE = Metric(
    name="comd_score",
    text="Score on an evaluation set, from 0 to 1, as soon as it is known.",
    labels=("evaluation", "role", "metric"),
    kind="gauge",
)
HOST_MEMORY = Metric(
    name="comd_host_memory_bytes",
    text="Resident memory of the ranks of the pod; pages that they share count in each.",
    kind="gauge",
    stays=False,
)
HOST_MEMORY_PEAK = Metric(
    name="comd_host_memory_peak_bytes",
    text="The most that it was of each rank of the phase, added up.",
    kind="gauge",
)
DEVICE_MEMORY = Metric(
    name="comd_device_memory_bytes",
    text="Device memory held by tensors, of the rank of the pod that holds most.",
    kind="gauge",
    joined="max",
    stays=False,
)
DEVICE_MEMORY_PEAK = Metric(
    name="comd_device_memory_peak_bytes",
    text="The most that it was in the phase.",
    kind="gauge",
    joined="max",
)
DEVICE_MEMORY_SIZE = Metric(
    name="comd_device_memory_size_bytes",
    text="Memory of a device.",
    kind="gauge",
    joined="max",
    stays=False,
)

ALL: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
BY_NAME: Mapping[str, Metric] = {metric.name: metric for metric in ALL}


class Record:
    """What one process has counted. Any thread may call any method."""

    def __init__(self) -> None:
        self._values: Values = {}
        self._lock = threading.Lock()

    def add(self, metric: Metric, amount: float = 1.0, /, **labels: str) -> None:
        """Adds to a counter. Adding 0 makes a series that can be seen to begin at 0."""
        key = metric.name, tuple(labels[name] for name in metric.labels)
        with self._lock:
            self._values[key] = self._values.get(key, 0.0) + amount

    def put(self, metric: Metric, value: float, /, **labels: str) -> None:
        """Sets a gauge."""
        key = metric.name, tuple(labels[name] for name in metric.labels)
        with self._lock:
            self._values[key] = value

    def values(self) -> Values:
        with self._lock:
            return dict(self._values)

    def take(self) -> Values:
        """The values, which are forgotten here."""
        with self._lock:
            values, self._values = self._values, {}
        return values


OWN = Record()
"""This process's."""
add, put = OWN.add, OWN.put


def joined(records: Iterable[Values]) -> Values:
    """What several processes have counted, as one: sums, and the greatest where a metric is joined by it."""
    whole: Values = {}
    for values in records:
        for key, value in values.items():
            known = whole.get(key)
            if known is None:
                whole[key] = value
            else:
                whole[key] = max(known, value) if BY_NAME[key[0]].joined == "max" else known + value
    return whole


@contextmanager
def handed_over(folder: Path, *, rank: int, sample: Callable[[], None]) -> Iterator[None]:
    """While the block lasts, this process's record is written into `folder` twice a second, after `sample` has measured what changes by
    itself; and once more at the end, however the block ends. A thread does it, so that no step waits."""
    path = folder / _PATTERN.replace("*", f"{rank:05d}")
    over = threading.Event()

    def write() -> None:
        partial = path.with_suffix(".partial")
        # On a full disk or a broken device there is none; that ends the phase where its work is, not here.
        with suppress(OSError, RuntimeError):
            sample()
            partial.write_text(json.dumps([[name, labels, value] for (name, labels), value in OWN.values().items()]))
            os.replace(partial, path)

    def keep_writing() -> None:
        while not over.wait(HAND_OVER_SECONDS):
            write()

    thread = threading.Thread(target=keep_writing, name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        write()


def read_folder(folder: Path) -> Values:
    """What the ranks of a phase have handed over so far, joined."""
    records = []
    for path in sorted(folder.glob(_PATTERN)):
        with suppress(FileNotFoundError):
            rows = json.loads(path.read_text())
            records.append({(name, tuple(labels)): float(value) for name, labels, value in rows})
    return joined(records)
