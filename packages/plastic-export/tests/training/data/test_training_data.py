"""Rows of several files in one order; what teaches nothing is named and left out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from plastic_export import FormatError
from plastic_export.model.tokenizer import load_tokenizer
from plastic_export.training.data.training_data import TrainingData, read_training_data

GOOD = {"prompt": "ab", "completion": "cd"}
LONG = {"prompt": "a" * 40, "completion": "cd"}
EMPTY = {"prompt": "ab", "completion": " "}
TEXTS = [{"text": letter * 5} for letter in "abcdefghijklmnopqrstuvwxyz"]


def write(file: Path, rows: Iterable[Any]) -> Path:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


def read(*places: Path, tokenizer: Any, **options: Any) -> TrainingData:
    numbers: dict[str, Any] = {"batch": 2, "window": 48} | options
    return read_training_data(places, tokenizer, **numbers)


def rows_of(data: Any) -> list[tuple[list[int], int]]:
    return [(data[i][0].tolist(), data[i][1]) for i in range(len(data))]


@pytest.mark.parametrize("mask_prompt", [False, True])
def test_rows_that_teach_nothing_are_named_and_left_out(
    mask_prompt: bool, tmp_path: Path, tokenizer: Any
) -> None:
    rows = [GOOD, LONG, EMPTY, GOOD, *[LONG] * 6]
    file = write(tmp_path / "a.jsonl", rows)
    valid = write(tmp_path / "valid.jsonl", [GOOD])
    found = read(file, valid, tokenizer=tokenizer, mask_prompt=mask_prompt)
    assert rows_of(found.train) == rows_of(found.valid) * 2
    assert found.notes == (
        f"{file}: left out 7 of 10 rows, lines 2, 5, 6, 7, 8 and 2 more: a window of 48 tokens "
        "leaves nothing of its answer",
        f"{file}: left out 1 of 10 rows, line 3: its text or answer is empty",
    )


def test_a_chat_stays_as_long_as_one_of_its_answers_does(tmp_path: Path, tokenizer: Any) -> None:
    ask, tell = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    long = {"messages": [ask, tell, {"role": "user", "content": "a" * 60}, tell]}
    file = write(tmp_path / "a.jsonl", [long] * 3)
    whole = read(file, tokenizer=tokenizer)
    assert whole.notes[0] == (
        f"{file}: cut the ends of 3 of 3 rows, which are beyond the window of 48 tokens"
    )
    assert {len(ids) for ids, _ in rows_of(whole.train)} == {48}
    with pytest.raises(FormatError, match=r"a.jsonl: 0 rows are left, .* \(left out 3 of 3 rows"):
        read(file, tokenizer=tokenizer, mask_prompt=True)


def test_the_first_token_of_an_answer_decides(tmp_path: Path, tokenizer: Any) -> None:
    file, valid = write(tmp_path / "a.jsonl", [GOOD] * 2), write(tmp_path / "val.jsonl", [GOOD])
    ((_, offset), *_) = rows_of(read(file, valid, tokenizer=tokenizer, mask_prompt=True).valid)
    for mask_prompt in (False, True):
        options = {"tokenizer": tokenizer, "mask_prompt": mask_prompt}
        assert len(read(file, valid, window=offset + 1, **options).train) == 2
        with pytest.raises(FormatError, match=f"a window of {offset} tokens leaves nothing"):
            read(file, valid, window=offset, **options)


def test_files_of_any_format_stand_one_after_the_other(tmp_path: Path, tokenizer: Any) -> None:
    chats = [{"messages": [{"role": "user", "content": "a"}]}]
    files = [write(tmp_path / f"{i}.jsonl", rows) for i, rows in enumerate((TEXTS, [GOOD], chats))]
    valid = write(tmp_path / "valid.jsonl", TEXTS[:1])
    each = [rows_of(read(file, valid, tokenizer=tokenizer, batch=1).train) for file in files]
    found = read(*files, valid, tokenizer=tokenizer)
    assert rows_of(found.train) == [row for rows in each for row in rows]
    assert found.notes == ()
    turned = read(*files[::-1], valid, tokenizer=tokenizer)
    assert turned.digests["train"] != found.digests["train"]
    assert turned.digests["valid"] == found.digests["valid"]


def test_a_tenth_is_held_out_where_no_file_is_to_validate_on(
    tmp_path: Path, tokenizer: Any
) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    write(folder / "part-0.jsonl", TEXTS[:13])
    write(folder / "part-1.jsonl", TEXTS[13:])
    found = read(folder, tokenizer=tokenizer, validated=100, seed=3)
    assert (len(found.train), len(found.valid)) == (24, 2)
    assert found.notes == (
        "rows to train on: part-0.jsonl, part-1.jsonl",
        "no file of rows to validate on: 2 of 26 rows, drawn by the seed 3, are held out of "
        "training",
    )
    together = rows_of(found.train) + rows_of(found.valid)
    assert len({tuple(ids) for ids, _ in together}) == 26
    other = read(folder, tokenizer=tokenizer, validated=100, seed=4)
    assert other.digests != found.digests
    assert len(read(folder, tokenizer=tokenizer, validated=1).valid) == 1


@pytest.mark.parametrize(
    ("rows", "batch", "said"),
    [
        (TEXTS[:2], 2, "a.jsonl: 2 rows, and a batch takes 2, validation one; give more rows, a"),
        ([], 1, "a.jsonl: 0 rows, and a batch takes 1, validation one; give more rows, a smaller"),
        (
            [EMPTY] * 4,
            2,
            r"a.jsonl: 0 rows are left, and a batch takes 2, validation one \(left out 4 of 4 "
            r"rows, lines 1, 2, 3, 4: its text or answer is empty\); give more rows, a smaller "
            "--batch or a longer --window",
        ),
    ],
)
def test_too_few_rows_are_refused(
    rows: list[Any], batch: int, said: str, tmp_path: Path, tokenizer: Any
) -> None:
    with pytest.raises(FormatError, match=said):
        read(write(tmp_path / "a.jsonl", rows), tokenizer=tokenizer, batch=batch)


@pytest.mark.parametrize(
    ("tools", "said"),
    [("f", "a string"), ({"name": "f"}, "an object"), (["f"], "one that holds something else")],
)
def test_tools_that_are_no_list_of_objects_are_refused(
    tools: Any, said: str, tmp_path: Path, tokenizer: Any
) -> None:
    file = write(tmp_path / "a.jsonl", [GOOD, GOOD | {"tools": tools}])
    message = f"line 2: cannot be read: `tools` must be a list of objects, got {said}"
    with pytest.raises(FormatError, match=message):
        read(file, tokenizer=tokenizer)


def test_tools_that_the_template_does_not_show_are_told(
    tmp_path: Path, tokenizer: Any, make_chatty: Callable[..., Path]
) -> None:
    rows = [GOOD, *[GOOD | {"tools": [{"name": "f"}]}] * 2]
    file = write(tmp_path / "a.jsonl", rows)
    assert not any("tools" in note for note in read(file, tokenizer=tokenizer, window=99).notes)
    blind = load_tokenizer(make_chatty("{% for m in messages %}{{ m.content }}{% endfor %}"))
    found = read(file, tokenizer=blind).notes
    assert found[0] == f"{file}: 2 rows have `tools`, which the chat template does not show"
