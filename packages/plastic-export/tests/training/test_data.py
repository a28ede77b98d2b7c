"""A folder of rows that is not there: what to name instead."""

from __future__ import annotations

from pathlib import Path

import pytest
from plastic_export import FormatError
from plastic_export.training.data import read_training_data

FETCH = "hf download --repo-type dataset acme/rows --local-dir DIR"
NAMED = "there is no such folder; name one with train.jsonl and valid.jsonl"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("acme/rows", f"{NAMED}; a data set of the Hub is fetched first: {FETCH}"),
        ("rows", NAMED),
        ("a/b/c", NAMED),
    ],
)
def test_a_missing_folder_has_a_remedy(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FormatError) as caught:
        read_training_data(Path(name), None, batch=1, window=2)
    assert str(caught.value) == f"{name}: {said}"
