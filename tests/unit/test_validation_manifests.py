"""Bad manifests: one sentence for each mistake, with field, value and what would be right."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from comd_api.exit_codes import UserError
from comd_operator.validation import InvalidManifestError, check_manifest, load_manifests, load_run
from comd_operator.validation.documents import format_document, parse_documents
from tests.unit.rule_examples import COMPOSED, manifest

SENTENCES: list[tuple[dict[str, Any], str]] = [
    ({"rounds__threshold": 12}, "spec.rounds.threshold: 12 is greater than 9 (An item is hard when"),
    ({"rounds__threshold": 0}, "spec.rounds.threshold: 0 must be more than 0"),
    ({"rounds__count": 0}, "spec.rounds.count: 0 is less than 1"),
    ({"training__adamBeta1": 1}, "spec.training.adamBeta1: 1 must be less than 1"),
    ({"rounds__count": "3"}, 'spec.rounds.count: "3" is not a whole number'),
    ({"rounds__count": 2.5}, "spec.rounds.count: 2.5 is not a whole number"),
    ({"rounds__count": True}, "spec.rounds.count: true is not a whole number"),
    ({"rounds__threshold": "1"}, 'spec.rounds.threshold: "1" is not a number'),
    ({"suspend": "no"}, 'spec.suspend: "no" is not true or false'),
    ({"data__images": 3}, "spec.data.images: 3 is not text"),
    ({"data__evaluation": {}}, "spec.data.evaluation: {} is not a list"),
    ({"generation": 3}, "spec.generation: 3 is not an object with fields"),
    ({"rounds__treshold": 1}, "spec.rounds.treshold: unknown field; did you mean threshold?"),
    ({"rounds__hard_items_floor": 1}, "spec.rounds.hard_items_floor: unknown field; did you mean hardItemsFloor?"),
    ({"trainer__zzz": 1}, "spec.trainer.zzz: unknown field; known here are image, imagePullPolicy, numNodes"),
    ({"student__endpoint": {}}, "spec.student.endpoint: unknown field; known here are composed, checkpoint"),
    ({"teacher": None}, "spec.teacher: missing (The model whose answers are imitated"),
    ({"data__seed__instructions": None}, "spec.data.seed.instructions: missing"),
    ({"student": {"composed": {k: v for k, v in COMPOSED.items() if k != "projector"}}}, "spec.student.composed.projector: missing"),
    ({"augmentor__type": "chat"}, 'spec.augmentor.type: "chat" is not known here; right would be Chat, Retrieval, Random or Repeat'),
    ({"data__images": "ftp://x"}, 'spec.data.images: "ftp://x" has the wrong form; right would be s3://bucket/path, file:///'),
    ({"data__images": ""}, 'spec.data.images: must not be empty'),
    ({"data__images": "a" * 2000}, "spec.data.images: text of 2000 characters is longer than 1024"),
    ({"training__trainable": []}, "spec.training.trainable: 0 entries are fewer than 1"),
    ({"data__evaluation": [{"name": f"e{i}", "items": "x"} for i in range(9)]}, "spec.data.evaluation: 9 entries are more than 8"),
    ({"data__evaluation": [{"name": "a", "items": "x", "metrik": 1}]}, "spec.data.evaluation[0].metrik: unknown field; did you mean"),
    (
        {"teacher": {"endpoint": {"url": "vllm:8000", "model": "m"}}},
        'spec.teacher.endpoint.url: "vllm:8000" has the wrong form; right would be http://host:port/path',
    ),
    ({"rounds__threshold": float("nan")}, "spec.rounds.threshold: NaN"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "says"), SENTENCES, ids=[says[:50] for _, says in SENTENCES])
def test_sentences(changes: dict[str, Any], says: str) -> None:
    run, problems = check_manifest(manifest(**changes))
    assert run is None
    assert [problem for problem in problems if problem.startswith(says)], problems
    assert all("\n" not in problem for problem in problems)


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ([1], "the document is [1], not an object"),
        ("text", 'the document is "text", not an object'),
        ({}, "apiVersion: missing; right would be comd.dev/v1alpha1"),
        ({"apiVersion": "v1"}, 'apiVersion: "v1"; right would be comd.dev/v1alpha1'),
        ({"apiVersion": "comd.dev/v1alpha1", "kind": "Job"}, 'kind: "Job"; right would be DistillationRun'),
        ({**manifest(), "metadata": {}}, "metadata.name: missing"),
        ({**manifest(), "spec": None}, "spec: missing"),
        ({**manifest(), "sepc": {}}, "sepc: unknown field; did you mean spec?"),
    ],
)
def test_documents_that_are_no_run(document: Any, says: str) -> None:
    run, problems = check_manifest(document)
    assert run is None
    assert any(problem.startswith(says) for problem in problems), problems


def test_all_mistakes_are_told_at_once() -> None:
    _, problems = check_manifest(manifest(rounds={"count": 0, "threshold": 12}, seed=-1))
    assert len(problems) == 3


def test_null_is_as_if_left_out_and_status_is_ignored() -> None:
    document = {**manifest(storage=None), "status": {"phase": "Nonsense"}}
    document["spec"]["storage"] = None
    document["spec"]["seed"] = None
    run, problems = check_manifest(document)
    assert problems == []
    assert run is not None
    assert run.spec.seed == 0
    assert run.status is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-5", 2e-5),
        ("2.0e-05", 2e-5),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("12", 12),
        ("-0x1f", -31),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("e5", "e5"),
        ("1.2.3", "1.2.3"),
    ],
)
def test_scalars_are_read_as_kubectl_reads_them(text: str, value: Any) -> None:
    (document,) = parse_documents(f"a: {text}", name="x")
    assert document == {"a": value}
    assert type(document["a"]) is type(value)


BREAKS = st.text(alphabet="ab \n\r\x85\u2028\u2029\t'\":#-", max_size=20)


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.text(max_size=20) | BREAKS | st.booleans())
@example("\x85")
@example("0E0")
@example("1e5")
def test_what_is_written_is_what_is_read(value: Any) -> None:
    """`status.yaml` is written by PyYAML and read by our own loader."""
    (document,) = parse_documents(format_document({"a": value}), name="x")
    assert document == {"a": value}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: [1,\n", "run.yaml:3: not valid YAML"),
        ("a: 1\na: 2\n", "run.yaml:2: not valid YAML: the key a stands here twice"),
        ("a: !!python/object:os.system {}\n", "run.yaml:1: not valid YAML"),
        ("? [1]\n: 2\n", "run.yaml:1: not valid YAML"),
        ("a: \x00", "run.yaml: not valid YAML"),
        ("", "run.yaml: holds no YAML document"),
        ("---\n---\n", "run.yaml: holds no YAML document"),
    ],
)
def test_files_that_are_no_yaml(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_manifests(path)
    assert str(caught.value).startswith(str(tmp_path / says)), caught.value


def test_files_that_can_t_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"\xff\xfe\xfa")
    for name, says in (("none", "there is no such file"), (".", "can't be read"), ("latin", "not UTF-8")):
        with pytest.raises(UserError, match=says):
            load_manifests(tmp_path / name)


def test_several_documents(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump_all([manifest(), manifest(seed=1)]))
    assert len(load_manifests(path)) == 2
    with pytest.raises(UserError, match="holds 2 documents"):
        load_run(path)
    path.write_text(yaml.safe_dump_all([manifest(), manifest(seed=-1), {"kind": "Service", "apiVersion": "v1"}]))
    with pytest.raises(InvalidManifestError) as caught:
        load_manifests(path)
    assert [problem.partition(": ")[0] for problem in caught.value.problems] == [
        f"{path} (document 2)",
        f"{path} (document 3)",
    ]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_nothing_makes_it_raise(document: Any) -> None:
    run, problems = check_manifest(document)
    assert run is None
    assert problems
    run, problems = check_manifest({**manifest(), "spec": document})
    assert run is None
    assert problems


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]\n",
        "a: &a {b: *a}\n",
        "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{name}: &{name} [{', '.join(['*' + before] * 10)}]\n" for before, name in pairwise("abcdefghi")),
    ],
    ids=["list in itself", "mapping in itself", "a billion values"],
)
def test_anchors_that_never_end_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"run\.yaml: holds more than 100,000 values when its anchors are written out"):
        parse_documents(text, name="run.yaml")
