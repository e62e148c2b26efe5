"""The competition beside honest controls, on handwritten digits: writes benchmarks/digits.md.

    make bench            # or: python benchmarks/digits.py --seeds 5

Every arm of a seed starts from the same pre-trained student, makes the same student steps and pays for the same number of new teacher
answers. The report is not written when the arms of a seed started from different students.
"""

import argparse
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "digits"
Manifest = dict[str, Any]

# Student's t, two-sided 95 %, by degrees of freedom.
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def competition(manifest: Manifest) -> None:
    """As it is."""


def plain(manifest: Manifest) -> None:
    """Random new instructions of the bank: plain distillation."""
    manifest["spec"]["augmentor"] = {"type": "Random"}


def hard_only(manifest: Manifest) -> None:
    """All new items are made from hard ones."""
    augmentation = manifest["spec"]["rounds"]["augmentation"]
    augmentation["hardItems"] += augmentation["easyItems"]
    augmentation["easyItems"] = 0


def no_new_data(manifest: Manifest) -> None:
    """More steps on the seed items."""
    manifest["spec"]["augmentor"] = {"type": "Repeat"}


def even(manifest: Manifest) -> None:
    """Random new instructions of a bank in which all skills are equally frequent: what knowing the skills' names would give."""
    manifest["spec"]["augmentor"] = {"type": "Random"}
    manifest["spec"]["data"]["bank"] = "inputs/bank-even.jsonl"


ARMS: dict[str, Callable[[Manifest], None]] = {
    "competition": competition,
    "plain": plain,
    "hard-only": hard_only,
    "no-new-data": no_new_data,
    "even-skills": even,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--lanes", type=int, default=os.cpu_count() or 1, help="runs side by side, one core each")
    parser.add_argument("--work-dir", type=Path, default=ROOT / "runs" / "bench-digits")
    parser.add_argument("--sets", default="eval", choices=["eval", "dev"], help="dev: for choosing settings")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "digits.md")
    arguments = parser.parse_args()
    started = time.monotonic()
    prepare(arguments.work_dir / "store" / "inputs")
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    # The first arm of all seeds comes first, so that the others find what they share with it.
    jobs = [(arm, seed) for arm in ARMS for seed in seeds]

    def run_job(job: tuple[str, int]) -> Manifest:
        arm, seed = job
        return run_arm(arm, seed, arguments.work_dir, arguments.sets)

    with ThreadPoolExecutor(arguments.lanes) as pool:
        results = list(tqdm(pool.map(run_job, jobs), total=len(jobs), unit="run"))
    statuses = dict(zip(jobs, results, strict=True))
    text = report(statuses, seeds=list(seeds), sets=arguments.sets, minutes=(time.monotonic() - started) / 60)
    arguments.out.write_text(text)
    print(text)
    return 0


def prepare(folder: Path) -> None:
    subprocess.run([sys.executable, str(EXAMPLE / "prepare.py"), "--out", str(folder)], check=True)


def run_arm(arm: str, seed: int, work_dir: Path, sets: str) -> Manifest:
    """Runs one arm to its end (or takes the finished one) and returns its status."""
    manifest = yaml.safe_load((EXAMPLE / "run.yaml").read_text())
    manifest["metadata"]["name"] = f"{sets}-{seed}"
    manifest["spec"]["seed"] = seed
    if sets == "dev":
        for evaluation in manifest["spec"]["data"]["evaluation"]:
            evaluation["items"] = evaluation["items"].replace("eval-", "dev-")
    ARMS[arm](manifest)
    folder = work_dir / sets / f"{arm}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "manifest.yaml"
    path.write_text(yaml.safe_dump(manifest, sort_keys=False))
    command = [
        sys.executable,
        "-m",
        "comd_operator",
        "run",
        str(path),
        "--work-dir",
        str(folder),
        "--storage",
        (work_dir / "store").as_uri(),
    ]
    done = subprocess.run(
        [*command, "--quiet"], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    if done.returncode != 0:
        raise SystemExit(
            f"{arm} with seed {seed} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    status: Manifest = yaml.safe_load((folder / "status.yaml").read_text())["status"]
    return status


def accuracy(status: Manifest, evaluation: str, *, role: str = "student", stage: int = -1) -> float:
    """Of the last stage that has scores; `stage=0`: of the first, the pre-trained student."""
    stages = [entry for entry in status["stages"] if entry.get("scores")]
    scores = stages[stage]["scores"]
    found = (score for score in scores if score["evaluation"] == evaluation and score["role"] == role)
    return 100 * float(next(found)["value"])


def new_items(status: Manifest) -> int:
    """Items that the student learnt from after the seed round, each with a teacher answer of its own: new ones and fresh ones."""
    counts = [entry.get("counts", {}) for entry in status["stages"]]
    return sum(count["accepted"] + count.get("fresh", 0) for count in counts if "accepted" in count)


def student_digest(status: Manifest, stage: str) -> str:
    entry = next(entry for entry in status["stages"] if entry["name"] == stage)
    return next(str(ref["digest"]) for ref in entry["artifacts"] if ref["name"] == "student")


def mean_interval(values: Iterable[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval (Student's t)."""
    values = list(values)
    if len(values) < 2:
        return values[0], math.nan
    half = T_95.get(len(values) - 1, 1.96) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), half


def report(statuses: dict[tuple[str, int], Manifest], *, seeds: list[int], sets: str, minutes: float) -> str:
    paid = {arm: {new_items(statuses[arm, seed]) for seed in seeds} for arm in ARMS}
    same = all(paid[arm] == paid["plain"] for arm in ARMS if arm != "no-new-data")
    assert same, f"the arms did not pay for equally many answers: {paid}"
    for seed in seeds:
        digests = {student_digest(statuses[arm, seed], "pretrain") for arm in ARMS}
        assert len(digests) == 1, f"the arms of seed {seed} did not start from the same student: {digests}"
    names = [
        score["evaluation"]
        for score in next(iter(statuses.values()))["stages"][-1]["scores"]
        if score["role"] == "student"
    ]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT
    ).stdout.strip()
    lines = [
        "# Digits: the competition beside its controls",
        "",
        f"`make bench` (`python benchmarks/digits.py --seeds {len(seeds)}`), commit {commit}, "
        f"{platform.machine()}, {os.cpu_count()} cores, {minutes:.0f} minutes.",
        f"{len(seeds)} seeds; one teacher; accuracy in % on {'held-out handwriting' if sets == 'eval' else 'the development split'}; "
        "± is the half width of a 95 % interval over seeds (Student's t); differences are paired by seed.",
        f"After the seed round an arm learns from {paid['plain'].pop()} new items, each with a teacher answer; no-new-data has none.",
        "",
    ]
    for name in names:
        teacher = accuracy(statuses["competition", seeds[0]], name, role="teacher")
        start = mean_interval(accuracy(statuses["competition", seed], name, stage=0) for seed in seeds)[0]
        lines += [f"## {name}", "", f"Teacher {teacher:.1f}; pre-trained student before round 1: {start:.1f}.", ""]
        lines += ["| arm | accuracy | minus plain | per seed |", "| --- | --- | --- | --- |"]
        for arm in ARMS:
            values = [accuracy(statuses[arm, seed], name) for seed in seeds]
            center, half = mean_interval(values)
            differences = [
                value - accuracy(statuses["plain", seed], name) for value, seed in zip(values, seeds, strict=True)
            ]
            gain, gain_half = mean_interval(differences)
            against = "" if arm == "plain" else f"{gain:+.1f} ± {gain_half:.1f}"
            lines.append(
                f"| {arm} | {center:.1f} ± {half:.1f} | {against} | {', '.join(f'{value:.1f}' for value in values)} |"
            )
        lines.append("")
    lines += skills(statuses, seeds, names[0])
    lines += ["## What was compared", ""]
    for arm, change in ARMS.items():
        lines.append(f"- **{arm}**: {change.__doc__}")
    return "\n".join(lines) + "\n"


def skills(statuses: dict[tuple[str, int], Manifest], seeds: list[int], name: str) -> list[str]:
    """Table of mean accuracy by group."""

    def groups(arm: str, seed: int) -> dict[str, float]:
        scores = [entry for entry in statuses[arm, seed]["stages"] if entry.get("scores")][-1]["scores"]
        score = next(score for score in scores if score["evaluation"] == name and score["role"] == "student")
        return {group["name"]: 100 * group["value"] for group in score.get("groups", [])}

    skill_names = list(groups("plain", seeds[0]))
    lines = [
        f"## {name} by skill, mean over seeds",
        "",
        "| arm | " + " | ".join(skill_names) + " |",
        "| --- " * (len(skill_names) + 1) + "|",
    ]
    for arm in ARMS:
        means = [statistics.fmean(groups(arm, seed)[skill] for seed in seeds) for skill in skill_names]
        lines.append(f"| {arm} | " + " | ".join(f"{mean:.0f}" for mean in means) + " |")
    return [*lines, ""]


if __name__ == "__main__":
    raise SystemExit(main())
