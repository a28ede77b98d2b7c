"""Numbers that are not finite change nothing in training and are named."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from plastic_core import RankLayer
from plastic_core.testing import bits
from plastic_runtime import PlasticityManager, SleepStore, save_run

NOT_FINITE = [np.nan, np.inf, -np.inf]


def spoiled(value: float, name: str) -> nn.Module:
    """Two layers of rank 3, one number in a factor of the second replaced."""
    mx.random.seed(0)
    model = nn.Sequential(*(RankLayer.from_linear(nn.Linear(8, 8, bias=False), 3) for _ in "ab"))
    layer = model.layers[1]
    factors = {n: np.array(a) for n, a in layer.factors()._asdict().items()}
    factors[name].flat[0] = value
    layer.set_factors(*(mx.array(factors[n]) for n in ("U", "S", "Vh")))
    return model


def manager_of(model: nn.Module) -> PlasticityManager:
    return PlasticityManager(model, optim.Adam(1e-2), window=1, patience=1, cooldown=0, guard=1)


def content(model: nn.Module) -> list[bytes]:
    return [bits(a) for layer in model.layers for a in layer.factors()]


@pytest.mark.parametrize("loss", NOT_FINITE)
def test_a_loss_that_is_not_finite_changes_nothing_and_is_an_event(loss: float) -> None:
    manager = manager_of(spoiled(1.0, "U"))
    for value in (loss, mx.array(loss)):
        (event,) = manager.step(value)
        assert event.action == "keep"
        assert f"the validation loss is {loss}: no change" in event.why
    assert manager.moving_loss is None


@pytest.mark.parametrize("name", ["U", "S", "Vh"])
@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_plateau_of_a_model_that_is_not_finite_names_the_layer(value: float, name: str) -> None:
    model = spoiled(value, name)
    manager, before = manager_of(model), content(model)
    manager.step(1.0)
    with pytest.raises(ValueError, match=f"`{name}` must be finite") as caught:
        manager.step(1.0)
    assert caught.value.__notes__ == ["in layer 'layers.1'"]
    for change in (lambda: manager.shrink("layers.1", 1), lambda: manager.grow("layers.1", 1)):
        with pytest.raises(ValueError, match="must be finite") as caught:
            change()
        assert caught.value.__notes__ == ["in layer 'layers.1'"]
    assert content(model) == before
    assert len(manager.sleep_dict) == 0


@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_run_that_is_not_finite_does_not_replace_a_saved_one(
    tmp_path: Path, value: float
) -> None:
    file = tmp_path / "run.safetensors"
    sound = spoiled(1.0, "U")
    save_run(file, sound, None, manager_of(sound))
    before = file.read_bytes()
    broken = spoiled(value, "U")
    with pytest.raises(ValueError, match=r"'layers\.1\.U'; nothing was saved"):
        save_run(file, broken, None, manager_of(broken))
    assert file.read_bytes() == before


@pytest.mark.parametrize("value", [1e38, 1e-40, -0.0])
@pytest.mark.parametrize("strategy", ["stable", "theorem"])
def test_numbers_of_any_finite_size_are_shrunk_and_woken(
    tmp_path: Path, value: float, strategy: str
) -> None:
    model = spoiled(value, "U")
    with SleepStore(tmp_path) as store:
        manager = PlasticityManager(
            model, window=1, patience=1, cooldown=0, guard=1, strategy=strategy, sleep=store
        )
        manager.step(1.0)
        manager.step(1.0)
        manager.shrink("layers.1", 1)
        manager.wake("layers.1")
    assert all(bool(mx.isfinite(a).all()) for layer in model.layers for a in layer.factors())
