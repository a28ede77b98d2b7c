"""Uploads to a server on this machine that speaks the Hub's API."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard
from plastic_export import compress
from plastic_export.cli.command import main

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
"""huggingface_hub's own."""


@pytest.fixture
def out(checkpoint_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "ein [kleines] 模型"
    with pytest.warns(UserWarning, match="mlx-lm itself cannot open"):
        compress(checkpoint_folder, folder, keep=0.5)
    return folder


def run(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["push", *map(str, words)])
    return int(str(ended.value.code))


def error(capsys: pytest.CaptureFixture[str]) -> str:
    *_, line = capsys.readouterr().err.splitlines()
    assert "error: " in line  # huggingface_hub may leave a bar before it
    return line


def test_a_dry_run_lists_files_and_bytes_and_asks_nothing(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(out, "me/tiny", "--dry-run", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["url"] is None
    assert listed["left"] == ["sleep.safetensors"]
    assert listed["files"]["model.safetensors"] == (out / "model.safetensors").stat().st_size
    assert {"README.md", "config.json", "plastic.json", "plastic_model.py"} <= set(listed["files"])


def test_an_output_is_uploaded_privately_without_what_sleeps(out: Path, hub: Any) -> None:
    (out / "notes.txt").write_text("mine")
    assert run(out, "me/tiny") == 0
    assert hub.visibility == {"me/tiny": "private"}
    there = hub.files["me/tiny"]
    assert there["model.safetensors"] == (out / "model.safetensors").read_bytes()
    assert "sleep.safetensors" not in there
    assert "notes.txt" not in there
    assert "--model me/tiny" in there["README.md"].decode()
    assert "OWNER/NAME" in (out / "README.md").read_text()
    assert hub.cards == [there["README.md"].decode()]


def test_public_and_what_sleeps_on_request_and_the_owner_of_the_token(out: Path, hub: Any) -> None:
    assert run(out, "tiny", "--public", "--with-sleep") == 0
    assert hub.visibility == {"me/tiny": "public"}
    assert "sleep.safetensors" in hub.files["me/tiny"]


def test_a_repository_with_files_gets_a_commit_with_update_alone(
    out: Path, hub: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.files["me/tiny"] = {".gitattributes": b"", "README.md": b"theirs"}
    assert run(out, "me/tiny") == 2
    assert "me/tiny: the repository is there and holds 1 files; choose" in error(capsys)
    assert hub.files["me/tiny"]["README.md"] == b"theirs"
    assert run(out, "me/tiny", "--update") == 0
    assert "model.safetensors" in hub.files["me/tiny"]


def test_an_upload_that_broke_off_goes_on_and_publishes_nothing_before(
    out: Path, hub: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.breaks_after = 1
    assert run(out, "me/tiny", "--with-sleep") == 3
    assert "me/tiny: the upload broke off (" in error(capsys)
    assert hub.files == {"me/tiny": {".gitattributes": b""}}
    hub.breaks_after = None
    first = hub.uploads.copy()
    assert run(out, "me/tiny", "--with-sleep") == 0
    assert len(first) == 1
    assert hub.uploads.count(first[0]) == 1
    assert hub.files["me/tiny"]["sleep.safetensors"] == (out / "sleep.safetensors").read_bytes()


def test_without_a_server_it_is_one_line(
    out: Path, monkeypatch: pytest.MonkeyPatch, hub: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert run(out, "me/tiny") == 3
    assert "me/tiny: the upload broke off (" in error(capsys)


@pytest.mark.parametrize(
    ("repository", "token", "said"),
    [
        ("me/tiny", None, "no token for the Hub is set; run `hf auth login`"),
        ("me/tiny", "hf_wrong", "the Hub does not know the token"),
        ("others/tiny", "hf_of_a_test", "the token may not write there"),
        ("me/a tiny [one]", "hf_of_a_test", "this is no name for a repository"),
        ("me/模型", "hf_of_a_test", "this is no name for a repository"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    out: Path,
    hub: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    repository: str,
    token: str | None,
    said: str,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nowhere")
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    assert run(out, repository) == 2
    assert said in error(capsys)
    assert hub.files == {}


def test_a_folder_that_is_none_of_ours_or_damaged_is_refused(
    out: Path, checkpoint_folder: Path, hub: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(checkpoint_folder, "me/tiny") == 2
    assert "it holds neither plastic.json nor plastic-run.json" in error(capsys)
    with (out / "model.safetensors").open("r+b") as file:
        file.truncate(100)
    assert run(out, "me/tiny") == 2
    assert "model.safetensors" in error(capsys)
    assert hub.files == {}


def test_stock_mlx_lm_uploads_it_too(
    out: Path, hub: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from mlx_lm.utils import upload_to_hub

    calls: list[Any] = []
    api = SimpleNamespace(
        create_repo=lambda **words: calls.append(words),
        upload_large_folder=lambda **words: calls.append(words),
    )
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: api)
    plain = Path(shutil.copytree(out, tmp_path / "plain"))
    upload_to_hub(str(plain), "me/tiny")
    assert [call["repo_id"] for call in calls] == ["me/tiny", "me/tiny"]
    assert ModelCard.load(plain / "README.md").data.library_name == "mlx"
    with pytest.raises(SystemExit, match="0"):
        main(["verify", str(plain)])
