"""Names of files tell what their rows are for; what is not there has a remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from plastic_export import FormatError
from plastic_export.training.data.files import find_data_files

FETCH = "hf download --repo-type dataset acme/rows --local-dir DIR"
NAMED = "there is no such folder; name one with train.jsonl and valid.jsonl"


def found(folder: Path, *places: str) -> tuple[list[str], list[str]]:
    files = find_data_files([folder / place for place in places or ("",)])
    train, valid = ([str(path.relative_to(folder)) for path in paths] for paths in files)
    return train, valid


@pytest.mark.parametrize(
    ("names", "train", "valid"),
    [
        (["train.jsonl", "valid.jsonl", "test.jsonl"], ["train.jsonl"], ["valid.jsonl"]),
        (["train.jsonl", "train_small.jsonl", "notes.jsonl"], ["train.jsonl"], []),
        (["train.parquet", "train.jsonl"], ["train.jsonl"], []),
        (
            ["train-00001-of-00002.parquet", "train-00000-of-00002.parquet", "test.parquet"],
            ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
            [],
        ),
        (
            ["train_part1.jsonl", "train_part2.jsonl", "val.jsonl"],
            ["train_part1.jsonl", "train_part2.jsonl"],
            ["val.jsonl"],
        ),
        (["b.jsonl", "a.jsonl", "test.jsonl"], ["a.jsonl", "b.jsonl"], []),
        (["train_sft.arrow", "train.arrow"], ["train.arrow"], []),
        (
            ["README.md", "data/train-0.parquet", "data/validation-0.parquet"],
            ["data/train-0.parquet"],
            ["data/validation-0.parquet"],
        ),
        ([".train.jsonl", "train.txt"], ["train.jsonl"], []),  # which is missed where it is read
    ],
)
def test_a_folder_holds_what_its_names_say(
    names: list[str], train: list[str], valid: list[str], tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    for name in names:
        (tmp_path / name).touch()
    assert found(tmp_path) == (train, valid)


def test_files_and_folders_add_up_in_the_order_given(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("b.jsonl", "a.jsonl", "dev.jsonl", "folder/train.jsonl"):
        (tmp_path / name).touch()
    train = ["b.jsonl", "folder/train.jsonl", "a.jsonl"]
    assert found(tmp_path, "b.jsonl", "folder", "dev.jsonl", "a.jsonl") == (train, ["dev.jsonl"])


def test_what_datasets_saved_is_known_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation"]}))
    assert found(tmp_path) == (["train"], ["validation"])
    one = tmp_path / "one"
    one.mkdir()
    for name in ("state.json", "dataset_info.json", "data-00000-of-00001.arrow"):
        (one / name).touch()
    assert found(tmp_path, "one") == (["one"], [])


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ["train_sft.parquet", "train_gen.parquet"],
            "several splits to train on, train_gen, ",
        ),
        (["train-00000-of-00003.jsonl"], "of 3 shards number 00001 is missing; download the rest"),
        (["train-0.jsonl", "train-1.parquet"], "the same rows may be in train-1.parquet too; name"),
        (["valid.jsonl"], "it holds rows to validate on, and none to train on; name train.jsonl"),
    ],
)
def test_what_names_leave_open_is_refused(names: list[str], said: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(FormatError, match=said):
        find_data_files([tmp_path])


def test_a_file_of_another_form_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").touch()
    with pytest.raises(FormatError, match=r"rows.csv: its name does not end in \.jsonl, \.parquet"):
        find_data_files([tmp_path / "rows.csv"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("acme/rows", f"{NAMED}; a data set of the Hub is fetched first: {FETCH}"),
        ("rows", NAMED),
        ("a/b/c", NAMED),
        ("rows.jsonl", "there is no such file; name a file of rows, or a folder with some"),
    ],
)
def test_what_is_missing_has_a_remedy(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FormatError) as caught:
        find_data_files([Path(name)])
    assert str(caught.value) == f"{name}: {said}"
