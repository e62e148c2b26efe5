"""Make everything that the digits example reads: `python examples/digits/prepare.py --out DIR`.

Writes pictures, instructions and three tiny models into DIR, training the models from nothing on real scans of
handwriting that scikit-learn ships; nothing is downloaded. Teacher and student parts are trained side by side in
worker processes of one thread each. What is there and complete is kept; what was interrupted is made again. Each part
is built beside its place and moved there whole.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import inputs
import world

TEACHER, STUDENT, DATA = "teacher", "student", "data"
PLACES: dict[str, tuple[str, ...]] = {
    TEACHER: ("models/teacher",),
    STUDENT: ("models/vision-tower", "models/language-model"),
    DATA: (
        inputs.IMAGES,
        *(f"{name}.jsonl" for name in ("pairs", "seed", "bank", "bank-even")),
        *(f"{name}.jsonl" for name in ("dev-balanced", "dev-natural", "eval-balanced", "eval-natural")),
    ),
}
"""What each part consists of, below `--out`. Longest part first: it gets a worker at once."""
LEDGER = "prepared.json"
NUM_TOWER_CANVASES = 8000
NUM_CHECKED = 25
"""Dev questions a skill that the saved teacher must answer before it is taken for a teacher."""
LEAST_TEACHER_ACCURACY = 0.8

Told = tuple[str, str, int, int]
"""Part, what it is at, how far, of how many."""
_told: SimpleQueue[Told] | None = None


def _start_worker(queue: SimpleQueue[Told]) -> None:
    """Remember where to report. Ctrl-C ends a worker without a word; the parent says what there is to say."""
    global _told
    _told = queue
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed, where installed, warns that it found no other
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # the libraries' own bars would break the progress line


def _tell(part: str, doing: str) -> Callable[[int, int], None]:
    last = 0.0

    def tell(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if _told is not None and (done == total or now - last > 0.5):
            last = now
            _told.put((part, doing, done, total))

    return tell


def make_data(folder: str, seed: int) -> str:
    """Pictures and rows. Returns a line for the reader."""
    inputs.build(Path(folder), seed=seed, progress=_tell(DATA, "pictures"))
    banked = inputs.NUM_BANK_CANVASES * inputs.NUM_BANK_PER_CANVAS
    return f"{banked:,} instructions in the bank, {inputs.NUM_SEED} in the seed"


def make_student(folder: str, seed: int) -> str:
    """The student's parts: a vision tower that knows digits, a language model that has read about canvases but never
    saw one."""
    import checks
    import numpy as np
    import tinymodels
    import torch

    torch.set_num_threads(1)
    models = Path(folder) / "models"
    canvases = inputs.Canvases(
        np.random.default_rng([seed, 200]), world.load_scans()["train"], "none", NUM_TOWER_CANVASES, shift=True
    )
    tell_tower, tell_language = _tell(STUDENT, "vision tower"), _tell(STUDENT, "language model")
    tower = tinymodels.train_tower(
        tinymodels.STUDENT,
        np.stack(canvases.pictures),
        canvases.cells,
        seed=seed + 1,
        progress=lambda done, total, _: tell_tower(done, total),
    )
    tower.save_pretrained(models / "vision-tower")
    tinymodels.make_image_processor().save_pretrained(models / "vision-tower")
    tokenizer = tinymodels.make_tokenizer(image=False)
    language = tinymodels.train_language_model(
        tinymodels.STUDENT, tokenizer, seed=seed + 1, progress=lambda done, total, _: tell_language(done, total)
    )
    language.save_pretrained(models / "language-model")
    tokenizer.save_pretrained(models / "language-model")
    checks.check_template(tokenizer)
    size = sum(parameter.numel() for parameter in (*tower.parameters(), *language.parameters()))
    return f"{size:,} parameters"


def make_teacher(folder: str, seed: int) -> str:
    """The teacher, trained on the truth of the train split and checked, as saved, on questions about the dev split."""
    import checks
    import numpy as np
    import tinymodels
    import torch

    torch.set_num_threads(1)
    scans = world.load_scans()
    rng = np.random.default_rng([seed, 300])
    canvases = inputs.Canvases(rng, scans["train"], "none", NUM_TOWER_CANVASES, shift=True)
    pictures = np.stack(canvases.pictures)
    tell_tower, tell_teacher = _tell(TEACHER, "vision tower"), _tell(TEACHER, "questions")
    tower = tinymodels.train_tower(
        tinymodels.TEACHER, pictures, canvases.cells, seed=seed, progress=lambda done, total, _: tell_tower(done, total)
    )
    model = tinymodels.train_teacher(
        tinymodels.TEACHER,
        tower,
        pictures,
        canvases.cells,
        seed=seed,
        progress=lambda done, total, _: tell_teacher(done, total),
    )
    place = Path(folder) / "models" / "teacher"
    tinymodels.save_teacher(model, place)
    asked = inputs.Canvases(rng, scans["dev"], "none", NUM_CHECKED * len(world.SKILLS), shift=False)
    questions = [world.draw_of_skill(rng, world.SKILLS[i % len(world.SKILLS)]) for i in range(len(asked.cells))]
    answers = checks.ask(place, asked.pictures, [question.text for question in questions])
    right = [world.answer(q, cells) == said for q, cells, said in zip(questions, asked.cells, answers, strict=True)]
    accuracy = sum(right) / len(right)
    if accuracy < LEAST_TEACHER_ACCURACY:
        raise RuntimeError(f"the teacher answers only {accuracy:.0%} of the dev questions; try another --seed")
    size = sum(parameter.numel() for parameter in model.parameters())
    return f"{size:,} parameters, {accuracy:.1%} of {len(right)} dev questions right"


MAKERS: dict[str, Callable[[str, int], str]] = {TEACHER: make_teacher, STUDENT: make_student, DATA: make_data}


def fingerprint(seed: int) -> str:
    """Changes with the seed and with the code that makes the parts, so that an old part is never taken for a new
    one."""
    digest = hashlib.sha256(str(seed).encode())
    for name in ("world.py", "inputs.py", "tinymodels.py", "checks.py", "prepare.py"):
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()


def read_ledger(out: Path) -> dict[str, str]:
    """Fingerprints of the parts that are complete; empty when there is no ledger or it cannot be read."""
    try:
        ledger = json.loads((out / LEDGER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(part): str(mark) for part, mark in ledger.items()} if isinstance(ledger, dict) else {}


def write_ledger(out: Path, ledger: dict[str, str]) -> None:
    """Replace the ledger whole."""
    beside = out / f".{LEDGER}.{os.getpid()}"
    beside.write_text(json.dumps(ledger, indent=2) + "\n", encoding="utf-8")
    os.replace(beside, out / LEDGER)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def take_over(part: str, built: Path, out: Path) -> None:
    """Move a finished part to its place. Its ledger entry is written after this."""
    for place in PLACES[part]:
        (out / place).parent.mkdir(parents=True, exist_ok=True)
        remove(out / place)
        os.replace(built / place, out / place)
    shutil.rmtree(built)


class Display:
    """One line a part on a terminal-less output every few seconds; one live line on a terminal."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.state: dict[str, str] = {}
        self.live = sys.stderr.isatty()
        self.shown = self.started

    def told(self, told: Told) -> None:
        part, doing, done, total = told
        self.state[part] = f"{part}: {doing} {done}/{total}"

    def show(self) -> None:
        now = time.monotonic()
        if self.live:
            print(
                f"\r\x1b[2K[{now - self.started:3.0f} s] {' · '.join(self.state.values())}",
                end="",
                file=sys.stderr,
                flush=True,
            )
        elif now - self.shown >= 10 and self.state:
            self.shown = now
            print(f"[{now - self.started:3.0f} s] {' · '.join(self.state.values())}", file=sys.stderr, flush=True)

    def finished(self, part: str, line: str) -> None:
        self.state.pop(part, None)
        start = "\r\x1b[2K" if self.live else ""
        print(f"{start}[{time.monotonic() - self.started:3.0f} s] {part} ready: {line}", file=sys.stderr, flush=True)


def prepare(out: Path, *, seed: int, workers: int) -> None:
    """Make every part that is not there, longest first, each in a worker process."""
    out.mkdir(parents=True, exist_ok=True)
    mark, ledger, display = fingerprint(seed), read_ledger(out), Display()
    for left_over in out.glob(".building-*"):
        remove(left_over)
    wanted = []
    for part, places in PLACES.items():
        if ledger.get(part) == mark and all((out / place).exists() for place in places):
            display.finished(part, "as it was")
            continue
        wanted.append(part)
        ledger.pop(part, None)
    if not wanted:
        return
    write_ledger(out, ledger)
    context = multiprocessing.get_context("spawn")
    queue: SimpleQueue[Told] = context.SimpleQueue()
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(queue,)) as pool:
        running: dict[Future[str], tuple[str, Path]] = {}
        for part in wanted:
            built = out / f".building-{part}"
            built.mkdir()
            running[pool.submit(MAKERS[part], str(built), seed)] = (part, built)
        try:
            while running:
                done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                while not queue.empty():
                    display.told(queue.get())
                for future in done:
                    part, built = running.pop(future)
                    line = future.result()
                    take_over(part, built, out)
                    ledger[part] = mark
                    write_ledger(out, ledger)
                    display.finished(part, line)
                display.show()
        except BaseException:
            for worker in multiprocessing.active_children():
                worker.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0 when everything is there."""
    parser = argparse.ArgumentParser(
        description="Make the pictures, instructions and tiny models of the digits example."
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to write to, such as runs/digits/inputs"
    )
    parser.add_argument("--seed", type=int, default=0, help="what every random choice comes from (default: 0)")
    parser.add_argument("--workers", type=int, default=2, help="processes to work in, one core each (default: 2)")
    chosen = parser.parse_args(arguments)
    if chosen.workers < 1 or chosen.seed < 0:
        parser.error("--workers must be at least 1 and --seed at least 0")
    os.environ["OMP_NUM_THREADS"] = "1"  # the models are too small for more, and the other core has its own work
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        prepare(chosen.out, seed=chosen.seed, workers=chosen.workers)
    except KeyboardInterrupt:
        print("\nstopped; what was complete is kept", file=sys.stderr)
        return 130
    except RuntimeError as error:
        print(f"prepare failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
