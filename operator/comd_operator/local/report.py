"""The tables at the end of a run, made of nothing but its status."""

from dataclasses import dataclass
from typing import TextIO

from rich.console import Console
from rich.table import Table as RichTable

from comd_api.run import DistillationRun
from comd_api.stages import round_of
from comd_api.status import Counts, PhaseName, RunStatus, Score, StageStatus
from comd_operator.local.view import duration


@dataclass(frozen=True, kw_only=True)
class Table:
    title: str
    header: list[str]
    rows: list[list[str]]


def tables(run: DistillationRun) -> list[Table]:
    """Accuracy, accuracy by group, items, time; each left out when there is nothing in it."""
    status = run.status or RunStatus()
    made = [accuracy(status), *groups(status), items(status), times(status)]
    return [table for table in made if table.rows]


def accuracy(status: RunStatus) -> Table:
    """Student and teacher on each evaluation set, before the rounds and after each, with 95 % Wilson intervals."""
    rows = []
    teachers: dict[str, Score] = {}
    for evaluation in _evaluations(status):
        for stage in status.stages:
            scores = {score.role: score for score in stage.scores if score.evaluation == evaluation}
            if not scores:
                continue
            teacher = scores.get("teacher") or teachers.get(evaluation)
            if teacher is not None:
                teachers[evaluation] = teacher
            student = scores.get("student")
            rows.append(
                [
                    evaluation,
                    when(stage),
                    _score(student),
                    _score(teacher),
                    str((student or teacher or _NO_SCORE).num_items),
                ]
            )
    return Table(
        title="Accuracy (95 % interval)", header=["evaluation", "when", "student", "teacher", "items"], rows=rows
    )


def groups(status: RunStatus) -> list[Table]:
    """One table per evaluation set whose rows have groups: students over time, the teacher last."""
    return [_groups_of(status, evaluation) for evaluation in _evaluations(status)]


def _groups_of(status: RunStatus, evaluation: str) -> Table:
    columns: dict[str, dict[str, float]] = {}
    teacher: dict[str, float] = {}
    sizes: dict[str, int] = {}
    for stage in status.stages:
        for score in stage.scores:
            if score.evaluation != evaluation or not score.groups:
                continue
            values = {group.name: group.value for group in score.groups}
            sizes |= {group.name: group.num_items for group in score.groups}
            if score.role == "student":
                columns[when(stage)] = values
            else:
                teacher = values
    shown = {**columns, **({"teacher": teacher} if teacher else {})}
    rows = [[name, str(sizes[name]), *(_value(values.get(name)) for values in shown.values())] for name in sizes]
    return Table(title=f"Accuracy on {evaluation} by group", header=["group", "items", *shown], rows=rows)


def items(status: RunStatus) -> Table:
    """What each round was made of."""
    names = ("train", "compared", "hard", "easy", "dropped", "accepted", "rejected", "teacher_answers")
    header = ["stage", "train items", "compared", "hard", "easy", "dropped", "new items", "rejected", "teacher answers"]
    rows = [
        [stage.name, *(_count(stage.counts, name) for name in names)]
        for stage in status.stages
        if stage.counts is not None and any(getattr(stage.counts, name) is not None for name in names)
    ]
    return Table(title="Items", header=header, rows=rows)


def times(status: RunStatus) -> Table:
    """How long each phase took; in brackets the phases that were found finished and cost nothing."""
    order: list[PhaseName] = [
        "preflight",
        "pretrain",
        "teach",
        "tune",
        "answer",
        "assess",
        "augment",
        "evaluate",
        "promote",
    ]
    present = [name for name in order if any(time.name == name for stage in status.stages for time in stage.phases)]
    rows = []
    for stage in status.stages:
        took = {time.name: time for time in stage.phases}
        if not took:
            continue
        cells = [
            "" if name not in took else "(reused)" if took[name].reused else duration(took[name].seconds)
            for name in present
        ]
        rows.append([stage.name, *cells, duration(sum(time.seconds for time in took.values() if not time.reused))])
    return Table(title="Time", header=["stage", *present, "total"], rows=rows)


def when(stage: StageStatus) -> str:
    number = round_of(stage.name)
    return f"after round {number}" if number else "before round 1"


def print_tables(found: list[Table], stream: TextIO) -> None:
    """With frames on a terminal, else in plain aligned columns that a pipe can cut."""
    if stream.isatty():
        console = Console(file=stream)
        for table in found:
            drawn = RichTable(*table.header, title=table.title, title_justify="left")
            for row in table.rows:
                drawn.add_row(*row)
            console.print(drawn)
        return
    for table in found:
        print(plain(table), end="\n\n", file=stream)


def plain(table: Table) -> str:
    cells = [table.header, *table.rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(table.header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([table.title, *(f"  {line}" for line in lines)])


_NO_SCORE = Score(evaluation="", role="student", value=0.0, low=0.0, high=0.0, num_items=0)


def _evaluations(status: RunStatus) -> list[str]:
    return list(dict.fromkeys(score.evaluation for stage in status.stages for score in stage.scores))


def _score(score: Score | None) -> str:
    return "" if score is None else f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


def _value(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _count(counts: Counts | None, name: str) -> str:
    value = getattr(counts, name) if counts is not None else None
    return "" if value is None else str(value)
