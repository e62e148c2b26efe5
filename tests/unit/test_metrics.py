"""What a trainer counts: how processes hand it over, that no counter ever falls, and that docs/metrics.md lists all of it."""

import json
import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from comd_api.exit_codes import TryAgainError
from comd_api.run import S3Options
from comd_api.status import PhaseTime
from comd_trainer import memory, metrics
from comd_trainer.context import PROGRESS_FILE
from comd_trainer.engine.batches import MicroBatch
from comd_trainer.engine.flops import HALF_PEAKS, Cost, cost_of, half_peak
from comd_trainer.engine.report import size_of
from comd_trainer.phases.judge import count_reply
from comd_trainer.server import StageStatus
from comd_trainer.store.counted import CountedStore, count_repeats
from comd_trainer.store.stores import OnBytes, open_store
from tests import metrics_table
from tests.unit.test_status_server import CONFIG


@pytest.fixture
def own() -> metrics.Record:
    """This process's record, empty."""
    metrics.OWN.take()
    return metrics.OWN


def value(status: StageStatus, name: str, **labels: str) -> float | None:
    """Of the one series that has these labels."""
    found = [
        sample.value
        for family in status.collect()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    assert len(found) <= 1, found
    return found[0] if found else None


def hand_over(folder: Path, rank: int, values: metrics.Values) -> None:
    rows = [[name, labels, amount] for (name, labels), amount in values.items()]
    partial = folder / "partial"
    partial.write_text(json.dumps(rows))
    partial.rename(folder / f"metrics-{rank:05d}.json")


def test_the_page_lists_what_is_exported() -> None:
    text = metrics_table.PAGE.read_text(encoding="utf-8")
    assert text == metrics_table.with_tables(text), "run `python -m tests.metrics_table`"


def test_names_and_labels_are_as_prometheus_wants_them() -> None:
    rows = metrics_table.trainer_rows()
    assert {metric.name for metric in metrics.ALL} <= {row.name.removesuffix("_total") for row in rows}
    for row in rows:
        assert re.fullmatch(r"comd_[a-z_]+", row.name)
        assert (row.type == "counter") == (row.name.endswith("_total") and row.name != "comd_phase_total"), row
        assert re.fullmatch(r"[A-Z].*\.", row.text), row
        assert not {"run", "namespace", "pod", "attempt"} & set(row.labels), "these are the pod's"


def test_ranks_hand_over_what_they_count_as_they_go_and_at_the_end(
    own: metrics.Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "HAND_OVER_SECONDS", 0.02)
    sampled = threading.Event()
    with metrics.handed_over(tmp_path, rank=3, sample=sampled.set):
        metrics.add(metrics.STEPS)
        deadline = time.monotonic() + 10
        while metrics.read_folder(tmp_path) != {("comd_steps", ()): 1.0}:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert sampled.is_set()
    with pytest.raises(TryAgainError):
        stopped_within(tmp_path)
    assert metrics.read_folder(tmp_path) == {("comd_steps", ()): 5.0}, "however it ended"
    assert [path.name for path in tmp_path.iterdir()] == ["metrics-00003.json"]
    assert own.values() == {("comd_steps", ()): 5.0}


def stopped_within(folder: Path) -> None:
    with metrics.handed_over(folder, rank=3, sample=lambda: None):
        metrics.add(metrics.STEPS, 4)
        raise TryAgainError("stopped")


def test_how_far_a_phase_is_stays_while_it_is_published(tmp_path: Path) -> None:
    """Else publishing after hours of work would look like hours without a step."""
    status = StageStatus(CONFIG, own=metrics.Record())
    status.begin("tune", [])
    status.watch(tmp_path)
    (tmp_path / PROGRESS_FILE).write_text(json.dumps({"done": 9, "total": 9, "unit": "steps", "time": 1234.5}))
    status.settle()
    for _ in ("its folder is there", "and then gone"):
        assert status.progress().done == 9
        assert value(status, "comd_last_progress_time_seconds", phase="tune") == 1234.5
        (tmp_path / PROGRESS_FILE).unlink(missing_ok=True)
    status.begin("answer", [])
    assert status.progress().done == 0
    assert value(status, "comd_last_progress_time_seconds", phase="answer") == status.phase_started


def test_a_device_that_does_not_answer_hides_no_error(tmp_path: Path) -> None:
    def broken() -> None:
        raise RuntimeError("CUDA error")

    with pytest.raises(TryAgainError), metrics.handed_over(tmp_path, rank=0, sample=broken):
        raise TryAgainError("the reason")


def test_a_full_disk_ends_no_phase_here(own: metrics.Record, tmp_path: Path) -> None:
    with metrics.handed_over(tmp_path / "not" / "there", rank=0, sample=lambda: None):
        own.add(metrics.STEPS)


def test_ranks_are_added_up_and_of_devices_the_fullest_counts(tmp_path: Path) -> None:
    status = StageStatus(CONFIG, own=metrics.Record())
    status.begin("tune", [])
    assert value(status, "comd_transfer_bytes_total") is None
    status.watch(tmp_path)
    for rank, (moved, held) in enumerate([(100.0, 5.0), (30.0, 9.0)]):
        moved_key = "comd_transfer_bytes", ("upload",)
        hand_over(tmp_path, rank, {moved_key: moved, ("comd_device_memory_bytes", ()): held})
    labels = {"stage": "round-1", "phase": "tune"}
    assert value(status, "comd_transfer_bytes_total", **labels, direction="upload") == 130.0
    assert value(status, "comd_device_memory_bytes", **labels) == 9.0


def test_counters_outlive_their_phase_and_never_fall(tmp_path: Path) -> None:
    """At every moment of a stage: before the first phase, with ranks, between their end and the next phase, and later."""
    own = metrics.Record()
    status = StageStatus(CONFIG, own=own)
    own.add(metrics.TRANSFERS, 2, direction="download")
    assert value(status, "comd_transfers_total") is None, "there is no phase to tell it of"
    seen: list[float | None] = []

    def look() -> None:
        seen.append(value(status, "comd_transfers_total", phase="teach"))

    status.begin("teach", [])
    look()
    status.watch(tmp_path)
    look()
    hand_over(
        tmp_path,
        0,
        {("comd_transfers", ("download",)): 3.0, ("comd_loss", ()): 0.5, ("comd_host_memory_bytes", ()): 1.0},
    )
    look()
    assert value(status, "comd_host_memory_bytes", phase="teach") == 1.0
    status.settle()
    (tmp_path / "metrics-00000.json").unlink()
    look()
    own.add(metrics.TRANSFERS, 1, direction="download")  # publishing
    look()
    status.begin("tune", [PhaseTime(name="teach", seconds=1.0)])
    own.add(metrics.TRANSFERS, 40, direction="download")
    look()
    assert seen == [2.0, 2.0, 5.0, 5.0, 6.0, 6.0]
    assert value(status, "comd_transfers_total", phase="tune") == 40.0
    assert value(status, "comd_loss", phase="teach") == 0.5, "the last one of a phase that is over"
    assert value(status, "comd_host_memory_bytes", phase="teach") is None, "which has none any more"


def test_a_scrape_beside_all_that_sees_no_counter_fall(tmp_path: Path) -> None:
    own = metrics.Record()
    status = StageStatus(CONFIG, own=own)
    status.begin("teach", [])
    seen: list[float] = []
    over = threading.Event()

    def scrape() -> None:
        while not over.is_set():
            seen.append(
                sum(
                    sample.value
                    for family in status.collect()
                    for sample in family.samples
                    if sample.name == "comd_steps_total"
                )
            )

    thread = threading.Thread(target=scrape)
    thread.start()
    for number in range(60):
        status.watch(tmp_path)
        hand_over(tmp_path, 0, {("comd_steps", ()): 5.0})
        status.settle()
        (tmp_path / "metrics-00000.json").unlink()
        own.add(metrics.STEPS)
        status.begin("tune" if number % 2 == 0 else "teach", [])
    over.set()
    thread.join()
    assert seen == sorted(seen)
    assert seen[-1] <= 60 * 6


def test_what_a_store_moves_is_counted(own: metrics.Record, tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/store", S3Options())
    (tmp_path / "local").write_bytes(b"12345")
    moved: list[int] = []
    store.write("a", b"123")
    assert store.read("a") == b"123"
    assert store.read_range("a", start=1, size=1) == b"2"
    store.upload(tmp_path / "local", "b", on_bytes=moved.append)
    store.download("b", tmp_path / "back", on_bytes=moved.append)
    with pytest.raises(FileNotFoundError):
        store.read("c")
    counted = own.values()
    assert moved == [5, 5]
    assert counted["comd_transfers", ("upload",)] == 2
    assert counted["comd_transfers", ("download",)] == 3
    assert counted["comd_transfer_bytes", ("upload",)] == 3 + 5
    assert counted["comd_transfer_bytes", ("download",)] == 3 + 1 + 5
    assert counted["comd_transfer_seconds", ("upload",)] > 0
    assert counted["comd_store_errors", ("failed",)] == 0, "a file that is not there is no failure"


def test_what_fails_in_a_store_is_counted(own: metrics.Record) -> None:
    class Away:
        def read(self, path: str) -> bytes:
            raise TryAgainError(path)

        def upload(self, *_: Any, on_bytes: OnBytes, **__: Any) -> None:
            for num_bytes in (8, 8, -8, 8):
                on_bytes(num_bytes)

    store = CountedStore(Away())  # type: ignore[arg-type]
    assert own.values()["comd_store_errors", ("failed",)] == 0
    with pytest.raises(TryAgainError):
        store.read("a")
    store.upload(Path("x"), "a")
    count_repeats({"ResponseMetadata": {"RetryAttempts": 3}}, model=None)
    count_repeats({"ResponseMetadata": {"RetryAttempts": 0}})
    counted = own.values()
    assert counted["comd_store_errors", ("failed",)] == 1
    assert counted["comd_store_errors", ("repeated",)] == 3
    assert counted["comd_transfer_bytes", ("upload",)] == 24, "a part that is sent again is sent"
    assert ("comd_transfers", ("download",)) not in counted, "it was none"


def test_a_judge_s_replies_by_what_becomes_of_them(own: metrics.Record) -> None:
    count_reply('because\n{"a": 7, "b": 3}', unread="asked_again")
    count_reply("both are fine", unread="asked_again")
    count_reply("both are fine", unread="dropped")
    results = ("parsed", "asked_again", "dropped")
    assert [own.values()["comd_judge_replies", (result,)] for result in results] == [1, 1, 1]


def test_memory_of_host_and_device(own: metrics.Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\n")
    monkeypatch.setattr(memory, "STATUS", status)
    memory.measure_memory("cpu")
    assert own.take() == {("comd_host_memory_peak_bytes", ()): 2 * 2**20, ("comd_host_memory_bytes", ()): 2**20}
    monkeypatch.setattr(memory, "STATUS", tmp_path / "nowhere")
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: {"cuda:1": 10}[device])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: {"cuda:1": 20}[device])
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory={"cuda:1": 80}[device])
    )
    memory.measure_memory("cuda:1")
    names = ("comd_device_memory_bytes", "comd_device_memory_peak_bytes", "comd_device_memory_size_bytes")
    assert [own.values()[name, ()] for name in names] == [10, 20, 80]


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756.0e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA GH200 480GB", 989.4e12),
        ("NVIDIA A100-SXM4-80GB", 312.0e12),
        ("NVIDIA A10", 125.0e12),
        ("NVIDIA A10G", None),
        ("NVIDIA L40S", 362.0e12),
        ("NVIDIA L40", None),
        ("Tesla T4", None),
    ],
)
def test_devices_whose_peak_is_known(name: str, peak: float | None) -> None:
    assert half_peak(name) == peak


def test_peaks_are_of_this_size() -> None:
    assert all(1e14 < peak < 1e16 for peak in HALF_PEAKS.values())


class Student(nn.Module):
    """With weights that can be counted by hand: 12 in the tower, 6 in the projector, 9 in the language model, 15 in the head."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.vision_tower = nn.Linear(4, 3, bias=True)
        self.model.multi_modal_projector = nn.Linear(3, 2, bias=False)
        self.model.language_model = nn.Module()
        self.model.language_model.embed = nn.Embedding(5, 3)
        self.model.language_model.layer = nn.Linear(3, 3)
        self.lm_head = nn.Linear(3, 5, bias=False)

    def get_input_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.model.language_model.embed  # type: ignore[union-attr, assignment]
        return embeddings

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head


VISION, PROJECTOR, LANGUAGE = (
    "model.vision_tower.",
    "model.multi_modal_projector.",
    ("model.language_model.", "lm_head."),
)


@pytest.mark.parametrize(
    ("learning", "cost"),
    [
        ((), Cost(vision=2 * 12 + 2 * 6, language=2 * 9, head=2 * 15)),
        ((PROJECTOR,), Cost(vision=2 * 12 + 6 * 6, language=4 * 9, head=4 * 15)),
        ((PROJECTOR, *LANGUAGE), Cost(vision=2 * 12 + 6 * 6, language=6 * 9, head=6 * 15)),
        ((*LANGUAGE,), Cost(vision=2 * 12 + 2 * 6, language=6 * 9, head=6 * 15)),
        ((VISION,), Cost(vision=6 * 12 + 4 * 6, language=4 * 9, head=4 * 15)),
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_operations_for_each_token(learning: tuple[str, ...], cost: Cost, tied: bool) -> None:
    """Gradients go back as far as something learns, and no further."""
    model = Student()
    if tied:
        model.lm_head.weight = model.model.language_model.embed.weight  # type: ignore[assignment, union-attr]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(learning) if learning else False)
    assert cost_of(model) == cost
    assert cost.of(tokens=10, image_tokens=4, supervised=3) == cost.language * 10 + cost.vision * 4 + cost.head * 3


def test_what_is_in_a_step() -> None:
    batch = MicroBatch(
        inputs={
            "input_ids": torch.tensor([[9, 9, 1, 2], [9, 1, 0, 0]]),
            "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
            "labels": torch.tensor([[-100, -100, 1, 2], [-100, 1, -100, -100]]),
        },
        rows=("a", "b"),
        dropped={"c": "why"},
        num_images=2,
    )
    size = size_of([batch, batch], image_token_id=9)
    assert size.numbers() == (6, 2, 12, 6, 4)
    assert size_of([batch], image_token_id=None).image_tokens == 0
    assert type(size).of_numbers(size.numbers()) == size


def test_counting_takes_microseconds(own: metrics.Record) -> None:
    """A step counts about ten times; a millisecond of it would be felt."""
    began = time.perf_counter()
    for _ in range(10_000):
        metrics.add(metrics.TRANSFER_BYTES, 1, direction="upload")
    assert (time.perf_counter() - began) / 10_000 < 50e-6
    assert own.values()["comd_transfer_bytes", ("upload",)] == 10_000
