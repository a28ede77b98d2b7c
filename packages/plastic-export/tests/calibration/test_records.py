"""Rows of texts and chats become the tokens of one text, control tokens as one token each."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plastic_core.files import FormatError
from plastic_export.calibration.chats import plain, without_system
from plastic_export.calibration.records import record_tokens
from plastic_export.calibration.text import Calibration
from plastic_export.checkpoint.reader import open_checkpoint
from plastic_export.checkpoint.warning import CheckpointWarning
from plastic_export.cli.command import main
from plastic_export.model.text import prefix_tokens
from plastic_export.model.tokenizer import load_tokenizer

Make = Callable[..., Path]
Rows = Iterable[Any]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}"
    "{% if tools %}tools{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
NOTHING = "{{ raise_exception('none at all') }}"
ASKED = {"role": "user", "content": "hi"}
TOLD = {"role": "assistant", "content": "yes"}
SYSTEM = {"role": "system", "content": "be"}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Rows], Path]:
    def write(rows: Rows) -> Path:
        file = tmp_path / "rows.jsonl"
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        file.write_text("\n".join(lines))
        return file

    return write


def tokens(folder: Path, file: Path, *, forgiving: bool = False) -> list[str]:
    """The names of the tokens of all rows."""
    tokenizer = load_tokenizer(folder)
    ids = record_tokens(file, tokenizer, prefix_tokens(tokenizer), forgiving=forgiving)
    return [str(name) for name in tokenizer.convert_ids_to_tokens(ids)]


def test_rows_of_all_formats_stand_one_after_the_other(
    make_chatty: Make, write: Callable[[Rows], Path]
) -> None:
    chat = {"messages": [ASKED, TOLD]}
    file = write([{"text": "abc"}, chat, "", {"prompt": "hi", "completion": "yes"}, {"text": "d"}])
    asked = ["<|im_start|>", *"user:hi", "<|im_end|>"]
    told = ["<|im_start|>", *"assistant:yes", "<|im_end|>"]
    rendered = [*asked, *told]
    assert tokens(make_chatty(CHATML), file) == [*"abc", "<e>", *rendered, *rendered, "d", "<e>"]


def test_a_text_without_a_token_that_ends_it_meets_the_next_one(
    make_chatty: Make, write: Callable[[Rows], Path]
) -> None:
    assert tokens(make_chatty(CHATML, end=None), write([{"text": "ab"}, {"text": "c"}])) == [*"abc"]


def test_what_begins_every_text_is_left_to_the_windows(
    make_chatty: Make, write: Callable[[Rows], Path]
) -> None:
    folder = make_chatty("<s>" + CHATML, begins=True)
    file = write([{"messages": [ASKED]}, {"text": "abcdefgh"}])
    assert "<s>" not in tokens(folder, file)
    with open_checkpoint(folder) as checkpoint:
        windows = np.asarray(Calibration(file, window=8).tokens(checkpoint))
    assert windows[:, 0].tolist() == [1, 1]
    assert (windows[:, 1:] != 1).all()


def test_the_template_gets_the_tools(make_chatty: Make, write: Callable[[Rows], Path]) -> None:
    row = {"messages": [ASKED], "tools": [{"type": "function", "function": {"name": "f"}}]}
    assert tokens(make_chatty(CHATML), write([row]))[-5:] == [*"tools"]


def test_without_a_template_chats_are_plain_text_and_a_warning_says_so(
    make_chatty: Make, write: Callable[[Rows], Path]
) -> None:
    folder, file = make_chatty(None), write([{"messages": [ASKED, TOLD]}, {"text": "a"}])
    with pytest.warns(CheckpointWarning, match=r"rows\.jsonl: 1 chats, .* no chat template"):
        found = tokens(folder, file)
    assert "".join(found).replace("<unk>", " ") == "user: hi assistant: yes<e>a<e>"


def test_what_a_message_holds_beside_its_content_is_json_in_plain_text() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    expected = 'user: hi\n\nassistant: {"content": null, "tool_calls": [{"name": "f"}]}'
    assert plain([ASKED, call]) == expected


BAD: dict[str, tuple[Any, str]] = {
    "no JSON": ('{"text": ', "not valid JSON"),
    "a list": ("[1, 2]", "the JSON is not an object"),
    "another format": ({"question": "?"}, "Unsupported data format"),
    "a number": ({"text": 3}, "`text` must be a string, got a number"),
    "half a chat": ({"prompt": "a", "completion": None}, "`completion` must be a string, got null"),
    "no messages": ({"messages": []}, "must be a list of messages, got an empty list"),
    "no role": ({"messages": [{"content": "a"}]}, "a message has no 'role'"),
    "half a character": ('{"text": "\\ud800"}', "half a character"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_damaged_line_is_named(
    make_chatty: Make, write: Callable[[Rows], Path], kind: str
) -> None:
    row, reason = BAD[kind]
    file = write([{"text": "a"}, row])
    with pytest.raises(FormatError) as caught:
        tokens(make_chatty(CHATML), file)
    assert f"{file}: line 2" in str(caught.value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_chat_that_the_template_refuses_is_named(
    make_chatty: Make, write: Callable[[Rows], Path]
) -> None:
    file = write([{"messages": [ASKED]}, {"messages": [SYSTEM, ASKED]}])
    with pytest.raises(FormatError, match=r"rows\.jsonl: line 2: cannot be read: no system"):
        tokens(make_chatty(NO_SYSTEM + CHATML), file)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (NO_SYSTEM + CHATML, "<|im_start|>user:be hi<|im_end|>"),
        (NOTHING, "system: be user: hi<e>"),
        (None, "system: be user: hi<e>"),
    ],
)
def test_the_shipped_chats_find_another_way(
    make_chatty: Make, write: Callable[[Rows], Path], template: str | None, expected: str
) -> None:
    folder, file = make_chatty(template), write([{"messages": [SYSTEM, ASKED]}])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = tokens(folder, file, forgiving=True)
    assert "".join(found).replace("<unk>", " ") == expected


def test_a_chat_without_a_system_message_stays_as_it_is() -> None:
    assert without_system([ASKED, TOLD]) == [ASKED, TOLD]
    assert without_system([SYSTEM]) == [SYSTEM]


@pytest.mark.parametrize("command", ["plan", "compress", "evaluate"])
def test_every_command_reads_chats_and_names_a_damaged_line(
    make_chatty: Make,
    write: Callable[[Rows], Path],
    command: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = make_chatty(CHATML)
    rows: list[Any] = [{"messages": [ASKED, {**TOLD, "content": "yes" * 40}]}] * 4
    words: dict[str, list[object]] = {
        "plan": ["--bits", "4,8", "--bits-per-weight", "6", "--out", tmp_path / "plan.json"],
        "compress": [tmp_path / "out", "--keep", 0.8],
        "evaluate": [],
    }
    text = "--text" if command == "evaluate" else "--calibration"

    def run(file: Path) -> tuple[Any, str]:
        given = [command, folder, *words[command], text, file, "--window", 24, "--windows", 8]
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in given])
        return stopped.value.code, capsys.readouterr().err

    code, error = run(write([*rows, '{"text": ']))
    assert (code, error.count("\n")) == (2, 1)
    assert "rows.jsonl: line 5" in error
    assert run(write(rows))[0] == 0
