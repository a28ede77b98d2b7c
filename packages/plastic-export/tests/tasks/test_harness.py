"""Where lm-evaluation-harness is not installed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from plastic_export.cli.command import main


@pytest.mark.parametrize("texts", [False, True])
def test_a_missing_extra_is_one_line_before_the_work(
    readable: Path,
    text: Path,
    texts: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    words = ["--text", str(text), "--window", "24"] if texts else []
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(readable), "--tasks", "arc_easy", *words])
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err) == (
        "",
        "error: tasks need lm-evaluation-harness; install the extra: "
        "pip install 'plastic-export[tasks]'\n",
    )


BAD = [
    ([], "Missing option '--text' or '--tasks'."),
    (["--tasks", "a,,b"], "'a,,b' must be names such as arc_easy,hellaswag"),
    (["--tasks", "a", "--window", "24"], "--window needs --text"),
    (["--tasks", "a", "--plot", "kl.png"], "--plot needs --text"),
    (["--text", "TEXT", "--limit", "8"], "--limit needs --tasks"),
    (["--text", "TEXT", "--no-apply-chat-template"], "--apply-chat-template needs --tasks"),
    (["--tasks", "a", "--reference", "TEXT"], "is a file; tasks need its checkpoint"),
]


@pytest.mark.parametrize(("words", "said"), BAD, ids=lambda x: " ".join(x) or "none")
def test_options_that_mean_nothing_are_one_line(
    make_readable: Callable[..., Path],
    text: Path,
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [str(text) if word == "TEXT" else word for word in words]
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(make_readable()), *words])
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
