"""Settings that are no numbers, or strange ones: one line, and nothing is built of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plastic_core.files import FormatError
from plastic_export.checkpoint.reader import open_checkpoint
from plastic_export.checkpoint.settings import check_settings
from plastic_export.evaluation.evaluation import compare
from plastic_export.model.library import model_failure
from plastic_export.model.stock import stock_model

NUMBERS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size", "rms_norm_eps", "rope_theta", "max_position_embeddings", "intermediate_size",
)  # fmt: skip
VALUES = (None, -1, 0, 1.5, "1e4", [1], {}, 1e30, 2**40, True)


@pytest.fixture
def config(make_checkpoint: Callable[..., Path]) -> dict[str, Any]:
    with open_checkpoint(make_checkpoint()) as checkpoint:
        return checkpoint.config


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_model_is_built_or_refused_in_one_line(
    config: dict[str, Any], name: str, value: Any
) -> None:
    said = refusal(config | {name: value})
    assert said is None or (said.isprintable() and said.startswith("config.json: "))
    is_counted = name not in ("rms_norm_eps", "rope_theta")
    if isinstance(value, str | list | dict) or (value == 2**40 and is_counted):
        assert re.search(rf"'{name}' is .*, and (mlx-lm's|MLX counts)", str(said))


def refusal(config: dict[str, Any]) -> str | None:
    try:
        stock_model(config)
    except FormatError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("num_attention_heads", 0, r"division or modulo by zero \('num_attention_heads' is 0\)"),
        ("num_hidden_layers", -1, r"\('num_hidden_layers' is -1\); correct"),
        ("num_hidden_layers", 1.5, r"\('num_hidden_layers' is 1\.5\); correct"),
        (
            "rope_scaling",
            [1],
            r"mlx-lm's 'llama' model cannot be built.*\('rope_scaling' is \[1\]\)",
        ),
    ],
)
def test_a_setting_that_may_be_to_blame_is_named(
    config: dict[str, Any], name: str, value: Any, said: str
) -> None:
    with pytest.raises(FormatError, match=said):
        stock_model(config | {name: value, "head_dim": None})


@pytest.mark.parametrize("nested", [False, True])
def test_more_layers_than_tensors_are_refused_at_once(
    make_checkpoint: Callable[..., Path], nested: bool
) -> None:
    many = {"num_hidden_layers": 10**6}
    folder = make_checkpoint(**({"text_config": many} if nested else many))
    with pytest.raises(FormatError, match="'num_hidden_layers' is 1000000, and the weights are 21"):
        open_checkpoint(folder)


def test_what_fails_at_the_first_step_is_one_line(
    make_readable: Callable[..., Path], text: Path
) -> None:
    source = make_readable(rope_theta=None)
    with pytest.raises(ValueError, match="rope") as caught:
        compare([source], [text], window=8, windows=1)
    failure = str(model_failure(caught.value))
    assert failure.startswith("mlx-lm's own code fails on this model")
    assert failure.isprintable()


def test_a_list_of_numbers_that_the_model_declares_is_no_fault() -> None:
    class Arguments:
        layers: list[int]
        width: int | None

    check_settings({"layers": [], "width": None}, Arguments, "config.json")
    with pytest.raises(FormatError, match="'width' is 'wide', and mlx-lm's model takes a number"):
        check_settings({"layers": [2], "width": "wide"}, Arguments, "config.json")
