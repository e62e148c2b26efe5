"""What the operator can be told: by an option, by a variable, or not at all."""

import json
import socket
from dataclasses import fields
from typing import Any

import pytest

from comd_api.exit_codes import UserError
from comd_api.run import S3Options
from comd_operator.cli.main import main
from comd_operator.cli.operator import FILLED_IN
from comd_operator.planner import ClusterDefaults
from comd_operator.shell import handlers
from comd_operator.shell.options import Options, from_environment, own_identity, variable_of

VALUES: dict[str, tuple[Any, str, Any]] = {
    # The default; another value as text; and what it means.
    "namespaces": ("", "team-a, team-b", "team-a, team-b"),
    "trainer_image": ("", "registry:5000/comd/trainer:v1", "registry:5000/comd/trainer:v1"),
    "storage_uri": ("", "s3://bucket/runs", "s3://bucket/runs"),
    "storage_endpoint": ("", "http://s3.storage:9000", "http://s3.storage:9000"),
    "storage_region": ("", "eu-1", "eu-1"),
    "storage_secret": ("", "s3", "s3"),
    "storage_s3": ("", '{"addressingStyle": "Path"}', '{"addressingStyle": "Path"}'),
    "queue": ("", "gpus", "gpus"),
    "tolerations": ("", '[{"operator": "Exists"}]', '[{"operator": "Exists"}]'),
    "workers": (10, "3", 3),
    "qps": (50.0, "0", 0.0),
    "burst": (100, "7", 7),
    "address": ("", "127.0.0.1", "127.0.0.1"),
    "port": (8080, "65535", 65535),
    "leader_election": (True, "false", False),
    "lease_namespace": ("", "comd", "comd"),
    "lease_name": ("comd-operator", "comd-2", "comd-2"),
    "lease_seconds": (15.0, "3", 3.0),
    "identity": ("", "me", "me"),
    "resync_seconds": (600.0, "60.5", 60.5),
    "progress_seconds": (30.0, "1", 1.0),
    "start_patience_seconds": (300.0, "0", 0.0),
    "log_format": ("auto", "json", "json"),
    "log_level": ("info", "debug", "debug"),
    "context": ("", "kind", "kind"),
}


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Options]:
    """The options that the operator would have been started with."""
    found: list[Options] = []

    def run(options: Options) -> bool:
        found.append(options)
        return True

    monkeypatch.setattr(handlers, "run", run)
    for name in VALUES:
        monkeypatch.delenv(variable_of(name), raising=False)
    return found


def test_every_option_is_in_the_table() -> None:
    assert [option.name for option in fields(Options)] == list(VALUES)
    assert all(option.metadata["help"] for option in fields(Options))


@pytest.mark.parametrize("name", list(VALUES))
def test_an_option(name: str, started: list[Options], monkeypatch: pytest.MonkeyPatch) -> None:
    default, text, value = VALUES[name]
    assert getattr(from_environment({}), name) == default
    assert getattr(from_environment({f"COMD_OPERATOR_{name.upper()}": text}), name) == value
    assert main(["operator", flag(name), text]) == 0
    assert getattr(started[-1], name) == value
    assert type(getattr(started[-1], name)) is type(default)
    monkeypatch.setenv(variable_of(name), text)
    assert main(["operator"]) == 0
    assert started[-1] == started[-2], "by a variable as by an option"


@pytest.mark.parametrize(
    ("variable", "option", "value"), [("7", "3", 3), ("x", "3", 3), ("7", None, 7), (None, "3", 3), (None, None, 10)]
)
def test_options_win_over_variables_and_variables_over_defaults(
    variable: str | None, option: str | None, value: int, started: list[Options], monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable is not None:
        monkeypatch.setenv("COMD_OPERATOR_WORKERS", variable)
    assert main(["operator", *(["--workers", option] if option is not None else [])]) == 0
    assert started[0].workers == value


WRONG = [
    ("workers", "0", "0 is less than 1"),
    ("workers", "1.5", "'1.5' is not a whole number"),
    ("workers", "", "'' is not a whole number"),
    ("qps", "-1", "-1 is less than 0"),
    ("qps", "fast", "'fast' is not a number"),
    ("qps", "nan", "nan is no number of seconds or requests"),
    ("burst", "0", "0 is less than 1"),
    ("lease_seconds", "2.9", "2.9 is less than 3"),
    ("lease_seconds", "inf", "inf is no number of seconds or requests"),
    ("resync_seconds", "0", "0 is less than 1"),
    ("progress_seconds", "0.5", "0.5 is less than 1"),
    ("start_patience_seconds", "-1", "-1 is less than 0"),
    ("port", "-1", "-1 is less than 0"),
    ("port", "65536", "65536 is more than 65535"),
    ("leader_election", "yes", "'yes' is neither true nor false"),
    ("log_format", "xml", "'xml' is not known; right would be auto, plain, json"),
    ("log_level", "loud", "'loud' is not known; right would be debug, info, warning, error"),
    ("storage_uri", "bucket/runs", "'bucket/runs' is not s3://bucket/prefix or file:///absolute/folder"),
    ("storage_uri", "s3://bucket/runs\n", "is not s3://bucket/prefix"),
    ("storage_uri", "s3://", "'s3://' is not"),
    ("storage_endpoint", "s3.storage:9000", "'s3.storage:9000' is not http://host:port/path or https://host/path"),
    ("storage_endpoint", "http://user:secret@s3", "without user and password"),
    ("storage_region", "EU 1", "'EU 1' is not"),
    ("storage_secret", "S3_Key", "'S3_Key' is not lower-case letters"),
    ("trainer_image", "no image", "'no image' is not an image"),
    ("namespaces", "team-a,Team B", "'Team B' is not lower-case letters"),
    ("queue", "My Queue", "'My Queue' is not lower-case letters"),
    ("storage_s3", "path", "no JSON"),
    ("storage_s3", "[]", "[] is not an object with fields"),
    ("storage_s3", '{"endpoint": "http://x"}', ".endpoint: has an option of its own; give it by --storage-endpoint"),
    ("storage_s3", '{"adressingStyle": "Path"}', ".adressingStyle: unknown field; did you mean addressingStyle?"),
    ("storage_s3", '{"addressingStyle": "path"}', '.addressingStyle: "path" is not known here'),
    ("storage_s3", '{"sseKmsKeyId": "x"}', "sseKmsKeyId needs serverSideEncryption: aws:kms"),
    ("storage_s3", '{"caBundle": {}}', "caBundle: set exactly one of configMapKeyRef and secretKeyRef"),
    ("tolerations", "nvidia.com/gpu:NoSchedule", "no JSON"),
    ("tolerations", '{"operator": "Exists"}', "is not a list"),
    ("tolerations", "[3]", "[0]: 3 is not an object with fields"),
    ("tolerations", f"[{', '.join(['{}'] * 33)}]", "33 entries are more than 32"),
    (
        "tolerations",
        '[{"operator": "Exists"}, {"effct": "NoSchedule"}]',
        "[1].effct: unknown field; did you mean effect?",
    ),
    ("tolerations", '[{"key": "a", "effect": "Never"}]', '[0].effect: "Never" is not known here'),
    ("tolerations", '[{"value": "a"}]', "[0]: key is missing"),
    ("tolerations", '[{"key": "a b"}]', "'a b' is no key of a taint"),
    ("tolerations", '[{"key": "a", "operator": "Exists", "value": "b"}]', "'b' is not compared"),
    ("tolerations", '[{"key": "a", "tolerationSeconds": 3}]', "with effect NoExecute alone"),
]


@pytest.mark.parametrize(("name", "text", "says"), WRONG)
def test_a_value_that_can_not_be_is_said_in_a_sentence_that_names_it(name: str, text: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        from_environment({variable_of(name): text})
    sentence = str(caught.value)
    assert says in sentence
    assert variable_of(name) in sentence or flag(name) in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(("name", "text"), [row[:2] for row in WRONG])
def test_on_the_command_line_it_is_64(
    name: str, text: str, started: list[Options], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["operator", f"{flag(name)}={text}"])
    except SystemExit as exited:
        code = exited.code  # type: ignore[assignment]
    assert code == 64
    assert flag(name) in capsys.readouterr().err
    assert not started


def test_certificates_for_an_endpoint_that_shows_none() -> None:
    bundle = '{"caBundle": {"secretKeyRef": {"name": "ca", "key": "ca.crt"}}}'
    assert from_environment({}, storage_s3=bundle, storage_endpoint="https://s3").defaults.storage_s3.ca_bundle
    with pytest.raises(UserError, match="--storage-s3: caBundle is for an endpoint with https://"):
        from_environment({}, storage_s3=bundle, storage_endpoint="http://s3")


def test_an_empty_variable_of_a_word_is_none() -> None:
    """As charts write those that nobody has set."""
    options = from_environment({variable_of(name): "" for name, (default, *_) in VALUES.items() if default == ""})
    assert options == Options()


def test_namespaces_are_separated_by_commas() -> None:
    assert Options().namespace_list == []
    assert Options(namespaces=" team-a ,team-b,, ").namespace_list == ["team-a", "team-b"]


def test_what_is_told_of_storage_and_image_is_what_runs_are_filled_in_with() -> None:
    shared = {name for name in VALUES if name.startswith(("storage_", "trainer_")) or name in ("queue", "tolerations")}
    assert {field.name for field in fields(ClusterDefaults)} == shared == set(FILLED_IN)
    gpu = '[{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}]'
    told: dict[str, Any] = {name: f"a-{name}" for name in shared - {"tolerations", "storage_s3"}}
    options = Options(**told, tolerations=gpu, storage_s3='{"addressingStyle": "Path"}')
    (toleration,) = options.defaults.tolerations
    assert toleration.to_wire() == json.loads(gpu)[0]
    s3 = S3Options(addressing_style="Path")
    assert options.defaults == ClusterDefaults(**told, tolerations=(toleration,), storage_s3=s3)


def test_two_processes_of_a_host_are_two() -> None:
    """In a pod every process is number 1, and a pod's name may come back."""
    assert own_identity() != own_identity()
    assert own_identity().startswith(f"{socket.gethostname()}_")


def test_help_says_defaults_and_variables(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["operator", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "--qps FLOAT requests per second to the API server; 0 for no limit (default: 50.0; COMD_OPERATOR_QPS)" in text
    )
    assert all(variable_of(name) in text for name in VALUES)
