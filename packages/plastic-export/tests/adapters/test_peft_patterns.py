"""Keys of rank_pattern and alpha_pattern, matched as PEFT matches them."""

import pytest
from plastic_export.adapters.peft_patterns import pattern_key, pattern_value

PATH = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("up_proj", 7),
        ("mlp.up_proj", 7),
        (PATH, 7),
        (r"layers\.[0-3]\..*", 7),
        (r"^model\.layers\.1\..*", 7),
        (r"model\.layers\.(0|1)\.mlp\.(up|down)_proj", 7),
        ("p_proj", 0),
        ("up", 0),
        (r"^layers\..*", 0),
        ("model.layers.11.mlp.up_proj", 0),
    ],
)
def test_a_key_matches_the_end_of_a_path_from_a_dot_on(key: str, value: int) -> None:
    assert pattern_value({key: 7}, PATH, 0) == value


def test_the_first_key_that_matches_counts() -> None:
    assert pattern_value({"down_proj": 1, "up_proj": 2, "mlp.up_proj": 3}, PATH, 0) == 2


@pytest.mark.parametrize("path", [PATH, "blocks.0.to(q)", "a+b.c", "модель.слой.0"])
def test_the_key_of_a_path_matches_that_path(path: str) -> None:
    assert pattern_value({pattern_key(path): 7}, path, 0) == 7
    assert pattern_value({pattern_key(path): 7}, f"{path}x", 0) == 0


def test_the_key_of_a_plain_path_is_the_path() -> None:
    assert pattern_key(PATH) == PATH
