"""What fails in mlx-lm's own code is told from what fails in ours."""

from __future__ import annotations

import linecache
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import pytest
from plastic_core.files import FormatError
from plastic_export.model.library import mlx_lm_utils, model_failure
from plastic_export.model.stock import stock_classes

MODEL = """
def missing(self, x):
    return x.keys

def too_wide(self, x):
    return self(x)

def calling_back(self, x):
    return self(x)
"""


def of_mlx_lm(name: str) -> Callable[..., object]:
    """A function that stands in a module of mlx-lm."""
    scope: dict[str, object] = {"__name__": "mlx_lm.models.odd"}
    exec(compile(MODEL, "odd.py", "exec"), scope)
    linecache.clearcache()
    function = scope[name]
    assert callable(function)
    return function


def failure(work: Callable[[], object]) -> str | None:
    with pytest.raises(Exception) as raised:  # noqa: PT011
        work()
    return model_failure(raised.value)


def test_an_error_in_a_model_of_mlx_lm_names_its_file() -> None:
    said = failure(lambda: of_mlx_lm("missing")(None, None))
    assert said == (
        "mlx-lm's own code fails on this model (mlx_lm/models/odd.py, line 3): "
        "AttributeError: 'NoneType' object has no attribute 'keys'"
    )


def test_an_error_in_a_layer_that_it_calls_is_its_own() -> None:
    said = failure(lambda: of_mlx_lm("too_wide")(nn.Linear(4, 4), mx.ones((1, 5))))
    assert said is not None
    assert "(mlx_lm/models/odd.py, line 6): ValueError: [" in said


def test_an_error_of_ours_is_a_defect_also_where_mlx_lm_calls_us() -> None:
    def ours(x: object) -> None:
        raise AttributeError("a mistake")

    assert failure(lambda: ours(None)) is None
    assert failure(lambda: of_mlx_lm("calling_back")(ours, None)) is None


def test_what_has_no_gradient_is_said() -> None:
    def orthogonal(x: mx.array) -> mx.array:
        return mx.linalg.qr(x, stream=mx.cpu)[0].sum()

    said = failure(lambda: mx.eval(mx.grad(orthogonal)(mx.eye(2))))
    assert said == (
        "the model cannot be differentiated, [Primitive::vjp] Not implemented for QRF; "
        "compress it by rank"
    )


def test_an_import_that_fails_is_not_taken_for_a_missing_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    utils = mlx_lm_utils()

    def refused(name: str) -> None:
        raise ImportError("lib.so: cannot open shared object file: Too many open files")

    monkeypatch.setattr(utils.importlib, "import_module", refused)
    with pytest.raises(FormatError, match=r"could not be imported: lib\.so: .* Too many open"):
        stock_classes({"model_type": "llama"}, "config.json")


def test_a_module_that_ends_the_program_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(name: str) -> None:
        raise SystemExit(1)

    monkeypatch.setattr(mlx_lm_utils().importlib, "import_module", ended)
    with pytest.raises(FormatError, match="'olmo' model needs a package that is not installed"):
        stock_classes({"model_type": "olmo"}, "config.json")
