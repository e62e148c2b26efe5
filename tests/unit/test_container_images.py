"""How container images are built: what the Dockerfiles may say, what each builder is told. tests/images builds them."""

import re
import subprocess
from pathlib import Path

import pytest

from images import base, builders, recipe
from images.__main__ import main, without_secrets
from images.builders import Build, Builder
from images.recipe import ImageError
from images.sbom import held

BUILD = Build(
    dockerfile=Path("images/operator/Dockerfile"),
    context=Path("."),
    image="comd/operator:1.2.3",
    epoch=1_767_225_600,
    base="python:3.11",
    labels={"org.opencontainers.image.version": "1.2.3"},
    arguments={"PIP_INDEX_URL": "https://user:secret@index.example.com/simple"},
    certificates=Path("/certificates.pem"),
)


def instructions(name: str) -> list[str]:
    """Of a Dockerfile: one line each, without comments."""
    lines = [
        line for line in recipe.dockerfile(name).read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    ]
    return [line for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines() if line]


@pytest.mark.parametrize("name", recipe.NAMES)
def test_a_dockerfile_says_what_every_builder_understands(name: str) -> None:
    words = {line.split()[0] for line in instructions(name)}
    assert words <= {"ARG", "FROM", "LABEL", "WORKDIR", "COPY", "RUN", "ENV", "USER", "ENTRYPOINT", "CMD"}
    assert not [line for line in instructions(name) if "--mount" in line or "<<" in line], (
        "kaniko and old daemons know neither"
    )


@pytest.mark.parametrize("name", recipe.NAMES)
def test_a_dockerfile_takes_pinned_things_alone(name: str) -> None:
    lines = instructions(name)
    assert re.fullmatch(r"ARG BASE=python:\d+\.\d+\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", lines[0])
    assert [line.split()[1] for line in lines if line.startswith("FROM ")] == ["${BASE}", "${BASE}"]
    for line in lines:
        for command in line.split("&&"):
            if "pip install" in command or "pip --python" in command:
                assert "--require-hashes" in command or "--no-index" in command, command
    for lock in re.findall(r"requirements/[a-z]+\.txt", " ".join(lines)):
        text = (recipe.ROOT / lock).read_text(encoding="utf-8")
        pins = re.findall(r"^[a-z0-9].*?(?=^[a-z0-9]|\Z)", text, re.S | re.M)
        assert pins
        assert all("==" in pin and "--hash=sha256:" in pin for pin in pins), lock
        assert "://" not in text, "a lock has no addresses"


@pytest.mark.parametrize("name", recipe.NAMES)
def test_an_image_starts_without_a_shell_and_without_root(name: str) -> None:
    last = instructions(name)[-3:]
    assert re.fullmatch(r"USER [1-9]\d*:[1-9]\d*", last[0])
    assert all(re.match(r'(ENTRYPOINT|CMD) \["', line) for line in last[1:])


def test_the_operator_s_image_has_nothing_of_the_trainer_s() -> None:
    lock = (recipe.ROOT / "requirements" / "operator.txt").read_text(encoding="utf-8")
    found = set(re.findall(r"^([a-z0-9-]+)==", lock, re.M))
    assert {"kopf", "kubernetes", "pydantic", "prometheus-client"} <= found
    assert not {"torch", "deepspeed", "transformers", "boto3", "pytest"} & found


def test_locks_agree() -> None:
    """What is tested is what images hold."""

    def pins(name: str) -> dict[str, str]:
        text = (recipe.ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
        return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.M))

    tested = pins("dev")
    for name in recipe.NAMES:
        assert pins(name).items() <= tested.items(), name


def test_the_context_is_what_the_ignore_file_lets_through() -> None:
    lines = (recipe.ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in lines
    assert tuple(line[1:] for line in lines if line.startswith("!")) == recipe.CONTEXT
    assert (
        tuple(line.removeprefix("**/").removeprefix("*") for line in lines if line.startswith("**/")) == recipe.LEFT_OUT
    )


def test_podman_and_buildah_give_every_file_the_one_time() -> None:
    for name in ("podman", "buildah"):
        command = Builder(name).build(BUILD)
        assert command[:2] == [name, "build"]
        assert command[-1] == "."
        assert {
            "--build-arg=BASE=python:3.11",
            "--build-arg=SOURCE_DATE_EPOCH=1767225600",
            "--timestamp=1767225600",
            "--label=org.opencontainers.image.version=1.2.3",
            f"--volume=/certificates.pem:{builders.CERTIFICATES}:ro",
        } <= set(command)


def test_docker_is_told_what_it_knows() -> None:
    command = Builder("docker").build(BUILD)
    assert "--build-arg=SOURCE_DATE_EPOCH=1767225600" in command
    assert not [part for part in command if part.startswith(("--timestamp", "--volume", "--isolation", "--root"))]


def test_without_a_base_the_dockerfile_s_own_is_taken() -> None:
    command = Builder("docker").build(Build(BUILD.dockerfile, BUILD.context, BUILD.image, BUILD.epoch))
    assert not [part for part in command if "BASE=" in part]


def test_passwords_in_addresses_are_not_shown() -> None:
    shown = without_secrets(Builder("docker").build(BUILD))
    assert "--build-arg=PIP_INDEX_URL=…" in shown
    assert not [part for part in shown if "secret" in part]
    assert "--build-arg=BASE=python:3.11" in shown


def test_the_first_builder_that_works_is_taken() -> None:
    assert builders.find(works=lambda name: name in ("podman", "buildah")) == "podman"
    assert builders.find("buildah", works=bool) == "buildah"
    with pytest.raises(ImageError, match="no docker and no podman and no buildah that works here"):
        builders.find(works=lambda name: name == "make")
    with pytest.raises(ImageError, match="--builder kaniko: no such builder; one of docker, podman, buildah"):
        builders.find("kaniko", works=bool)


def test_a_build_reaches_what_this_machine_reaches() -> None:
    environment = {
        "https_proxy": "http://proxy:3128",
        "PIP_INDEX_URL": "https://index",
        "PIP_CACHE_DIR": "/x",
        "NO_PROXY": "",
    }
    assert builders.passed_on(environment) == {"https_proxy": "http://proxy:3128", "PIP_INDEX_URL": "https://index"}
    assert builders.certificates({"SSL_CERT_FILE": "/a", "PIP_CERT": "/b"}) == Path("/b")
    assert builders.certificates({}) is None


def test_the_time_is_the_commit_s_unless_it_is_given(tmp_path: Path) -> None:
    assert recipe.epoch({"SOURCE_DATE_EPOCH": "12"}, tmp_path) == 12
    with pytest.raises(ImageError, match="SOURCE_DATE_EPOCH is 'today'; it must be whole seconds since 1970"):
        recipe.epoch({"SOURCE_DATE_EPOCH": "today"}, tmp_path)
    with pytest.raises(ImageError, match="SOURCE_DATE_EPOCH is not set, and this is no git checkout"):
        recipe.epoch({}, tmp_path)
    commit(tmp_path, at="1234567890 +0000")
    assert recipe.epoch({}, tmp_path) == 1_234_567_890


def test_a_revision_says_whether_files_of_the_image_were_changed(tmp_path: Path) -> None:
    assert recipe.revision(tmp_path) is None
    commit(tmp_path, at="1234567890 +0000")
    clean = recipe.revision(tmp_path)
    assert clean is not None
    assert re.fullmatch("[0-9a-f]{40}", clean)
    (tmp_path / "notes").write_text("of no image")
    assert recipe.revision(tmp_path) == clean
    (tmp_path / "LICENSE").write_text("changed")
    assert recipe.revision(tmp_path) == f"{clean}-dirty"


def commit(folder: Path, *, at: str) -> None:
    (folder / "LICENSE").write_text("free")
    who = {
        f"GIT_{person}_{what}": at if what == "DATE" else "x"
        for person in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL", "DATE")
    }
    for arguments in (["init", "--quiet"], ["add", "LICENSE"], ["commit", "--quiet", "--message=x"]):
        subprocess.run(
            ["git", *arguments],
            cwd=folder,
            check=True,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(folder), **who},
        )


def test_labels_leave_out_what_is_not_known() -> None:
    found = recipe.labels(version="1.2.3", epoch=1_767_225_600, revision=None, source="https://example.com/comd")
    assert found == {
        "org.opencontainers.image.version": "1.2.3",
        "org.opencontainers.image.created": "2026-01-01T00:00:00Z",
        "org.opencontainers.image.source": "https://example.com/comd",
    }


def test_a_key_changes_with_what_the_image_is_made_of(tmp_path: Path) -> None:
    for place in recipe.CONTEXT:
        if "." in place or place == "LICENSE":
            (tmp_path / place).write_text(place)
        else:
            (tmp_path / place / "package").mkdir(parents=True)
            (tmp_path / place / "package" / "module.py").write_text(place)
    (tmp_path / ".dockerignore").touch()
    recipe.dockerfile("operator", tmp_path).parent.mkdir(parents=True)
    recipe.dockerfile("operator", tmp_path).write_text("FROM scratch")

    def key(*more: str) -> str:
        return recipe.key("operator", *more, root=tmp_path)

    before = key()
    assert key("another base") != before
    (tmp_path / "crds" / "package" / "__pycache__").mkdir()
    (tmp_path / "crds" / "package" / "__pycache__" / "module.pyc").touch()
    (tmp_path / "notes.txt").touch()
    assert key() == before
    (tmp_path / "operator" / "package" / "module.py").write_text("changed")
    assert key() != before


def test_what_is_wrong_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["operator", "--builder=make"]) == 1
    assert capsys.readouterr().err == "images: --builder make: no such builder; one of docker, podman, buildah\n"


def test_the_base_has_what_the_dockerfiles_take() -> None:
    command = base.mmdebstrap(Path("rootfs.tar"))
    assert command[-2:] == ["bookworm", "rootfs.tar"]
    assert "--include=ca-certificates,libstdc++6,python3,python3-venv" in command


def test_a_bill_of_materials_lists_what_the_image_holds() -> None:
    """And not what the lock has for other systems."""
    lock = (
        "colorama==0.4.6 ; sys_platform == 'win32' \\\n    --hash=sha256:a\n    # via click\n"
        "numpy==2.4.6 ; python_full_version < '3.12' \\\n    --hash=sha256:b\n"
        "numpy==2.5.5 ; python_full_version >= '3.12' \\\n    --hash=sha256:c\n"
        "yarl==1.25.1 \\\n    --hash=sha256:d \\\n    --hash=sha256:e\n"
    )
    found = held(lock)
    assert re.findall(r"^(\S+==\S+)", found, re.M) == ["numpy==2.4.6", "yarl==1.25.1"]
    assert re.findall("sha256:(.)", found) == ["b", "d", "e"]
