"""Where the test server's binary comes from."""

from pathlib import Path

import pytest

from tests.s3 import versity


def executable(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "versitygw"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("COMD_TEST_BIN", raising=False)


def test_without_a_binary_or_go_there_is_one_line_to_say_so() -> None:
    with pytest.raises(versity.NoServerError, match=r"^no S3 server: [^\n]*no Go to build it$"):
        versity.binary()


def test_the_named_folder_comes_first_then_path_then_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versity, "_build", lambda target: executable(target.parent))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "go").write_text("")
    (tmp_path / "bin" / "go").chmod(0o755)
    built = versity.binary()
    assert built.is_relative_to(tmp_path / "cache" / "comd" / "bin")
    monkeypatch.setattr(versity, "_build", lambda target: pytest.fail(f"built {target} again"))
    assert versity.binary() == built
    on_path = executable(tmp_path / "bin")
    assert versity.binary() == on_path
    named = executable(tmp_path / "named")
    monkeypatch.setenv("COMD_TEST_BIN", str(tmp_path / "named"))
    assert versity.binary() == named
