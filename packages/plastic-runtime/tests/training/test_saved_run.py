from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten
from plastic_core import RankLayer
from plastic_core.files import FormatError, write_arrays
from plastic_core.testing import bits, gaussian
from plastic_runtime.manager.manager import PlasticityManager
from plastic_runtime.training.saved_run import load_run, save_run

WIDTH = 5

Make = Callable[[], optim.Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "AdamW": lambda: optim.AdamW(optim.cosine_decay(1e-2, 50)),
    "SGD": lambda: optim.SGD(1e-2, momentum=0.9),
    "Adafactor": lambda: optim.Adafactor(),
    "MultiOptimizer": lambda: optim.MultiOptimizer(
        [optim.Muon(1e-2), optim.Adam(1e-2)], [lambda name, array: array.ndim == 2]
    ),
}


def named(tree: Any) -> dict[str, mx.array]:
    return dict(tree_flatten(tree))


def parameters(model: nn.Module) -> dict[str, mx.array]:
    return named(model.parameters())  # type: ignore[no-untyped-call]


class Net(nn.Module):
    """Two managed layers, a trained one of fixed shape and a frozen one."""

    def __init__(self, ranks: tuple[int, int] = (2, 3)) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        rng = np.random.default_rng(0)
        self.layers = [random_layer(rng, rank) for rank in ranks]
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WIDTH, bias=False)
        self.head.weight = gaussian(np.random.default_rng(9), WIDTH, WIDTH)
        self.head.freeze()
        self.layers[1].set_dtype(mx.bfloat16)

    def __call__(self, x: mx.array) -> mx.array:
        for layer in self.layers:
            x = mx.tanh(layer(x))
        return self.head(self.norm(x))


def random_layer(rng: np.random.Generator, rank: int) -> RankLayer:
    return RankLayer(gaussian(rng, WIDTH, rank), gaussian(rng, rank), gaussian(rng, rank, WIDTH))


class Run:
    """A model in training: made, trained, changed, saved and resumed the same way each time."""

    def __init__(self, make: Make, ranks: tuple[int, int] = (2, 3), **options: Any) -> None:
        self.model, self.optimizer = Net(ranks), make()
        rng = np.random.default_rng(1)
        x, y = gaussian(rng, 8, WIDTH), gaussian(rng, 8, WIDTH)
        self.loss = lambda: mx.square(self.model(x) - y).mean()
        self.manager = PlasticityManager(self.model, self.optimizer, loss=self.loss, **options)

    def train(self, steps: int) -> list[float]:
        step = nn.value_and_grad(self.model, self.loss)
        losses = []
        for _ in range(steps):
            loss, gradients = step()
            self.optimizer.update(self.model, gradients)
            mx.eval(parameters(self.model), self.optimizer.state)
            self.manager.step(loss)
            losses.append(float(loss))
        return losses

    def parts(self) -> tuple[Net, optim.Optimizer, PlasticityManager]:
        return self.model, self.optimizer, self.manager

    def picture(self) -> object:
        trees = parameters(self.model), self.optimizer.state, self.manager.sleep_dict.arrays()
        arrays = {
            f"{i}.{n}": bits(a.reshape(-1))
            for i, t in enumerate(trees)
            for n, a in named(t).items()
        }
        return arrays, self.manager.state(), self.manager.sleep_dict.meta()


def changed_run(make: Make) -> Run:
    run = Run(make, patience=1, cooldown=0, delta=10.0)
    run.train(3)
    run.manager.shrink("layers.1", 1)
    run.manager.grow("layers.0", 1)
    run.train(2)
    return run


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_a_resumed_run_goes_on_with_the_same_bits(make: Make, tmp_path: Path) -> None:
    run = changed_run(make)
    save_run(tmp_path / "run", *run.parts())
    resumed = Run(make, patience=1, cooldown=0, delta=10.0)
    load_run(tmp_path / "run", *resumed.parts())
    assert resumed.picture() == run.picture()
    assert resumed.train(4) == run.train(4)
    assert resumed.picture() == run.picture()


def test_what_slept_when_saved_wakes_when_resumed(tmp_path: Path) -> None:
    run = changed_run(OPTIMIZERS["AdamW"])
    ids = run.manager.sleep_dict.ids("layers.1")
    assert ids
    save_run(tmp_path / "run", *run.parts())
    resumed = Run(OPTIMIZERS["AdamW"], patience=1, cooldown=0, delta=10.0)
    load_run(tmp_path / "run", *resumed.parts())
    for r in (run, resumed):
        r.manager.wake("layers.1", ids)
    assert resumed.picture() == run.picture()


def test_a_run_saved_before_its_first_step_resumes(tmp_path: Path) -> None:
    run = Run(OPTIMIZERS["AdamW"])
    save_run(tmp_path / "run", *run.parts())
    resumed = Run(OPTIMIZERS["AdamW"], ranks=(1, 1))
    resumed.train(1)
    load_run(tmp_path / "run", *resumed.parts())
    assert resumed.train(2) == run.train(2)


def test_a_manager_without_an_optimizer_is_saved_as_well(tmp_path: Path) -> None:
    model = Net()
    save_run(tmp_path / "run", model, None, PlasticityManager(model))
    other = Net(ranks=(1, 1))
    load_run(tmp_path / "run", other, None, PlasticityManager(other))
    assert bits(other.layers[0].U) == bits(model.layers[0].U)


def test_a_step_compiled_before_loading_goes_on_from_the_loaded_state(tmp_path: Path) -> None:
    def start(seed: int) -> tuple[RankLayer, optim.Optimizer, PlasticityManager]:
        layer = random_layer(np.random.default_rng(seed), 2 + seed)
        optimizer = optim.SGD(1e-2, momentum=0.9)
        return layer, optimizer, PlasticityManager(layer, optimizer)

    def losses(parts: tuple[RankLayer, optim.Optimizer, PlasticityManager]) -> list[float]:
        layer, optimizer, _ = parts
        value_and_grad = nn.value_and_grad(layer, lambda: mx.square(layer.weight - 1).mean())

        def step() -> mx.array:
            loss: mx.array
            loss, gradients = value_and_grad()
            optimizer.update(layer, gradients)
            return loss

        state = [layer.state, optimizer.state]
        compiled: Callable[[], mx.array] = mx.compile(step, inputs=state, outputs=state)
        before = [float(compiled()) for _ in range(3)]
        load_run(tmp_path / "run", *parts)
        return before + [float(compiled()) for _ in range(3)]

    saved = start(0)
    save_run(tmp_path / "run", *saved)
    fresh = losses(saved)
    assert losses(start(1))[3:] == fresh[3:] == fresh[:3]


def test_saving_replaces_the_file_at_once_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    run = changed_run(OPTIMIZERS["SGD"])
    save_run(tmp_path / "run.safetensors", *run.parts())
    good = (tmp_path / "run.safetensors").read_bytes()
    run.train(1)
    with (tmp_path / "run.safetensors").open("rb") as reader:
        save_run(tmp_path / "run.safetensors", *run.parts())
        assert reader.read() == good
    assert (tmp_path / "run.safetensors").read_bytes() != good
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]


def test_a_run_that_is_not_finite_does_not_replace_the_last_good_one(tmp_path: Path) -> None:
    run = changed_run(OPTIMIZERS["SGD"])
    save_run(tmp_path / "run", *run.parts())
    good = (tmp_path / "run").read_bytes()
    run.model.norm.bias = run.model.norm.bias + mx.array(np.nan)
    with pytest.raises(ValueError, match=r"NaN or infinities in 'norm\.bias'; nothing was saved"):
        save_run(tmp_path / "run", *run.parts())
    assert (tmp_path / "run").read_bytes() == good


def test_a_write_that_fails_keeps_the_last_good_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = changed_run(OPTIMIZERS["SGD"])
    save_run(tmp_path / "run", *run.parts())
    good = (tmp_path / "run").read_bytes()
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(good) // 2, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_run(tmp_path / "run", *run.parts())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert (tmp_path / "run").read_bytes() == good


def test_a_missing_folder_and_a_missing_file_are_named(tmp_path: Path) -> None:
    run = Run(OPTIMIZERS["SGD"])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        save_run(tmp_path / "nowhere" / "run", *run.parts())
    with pytest.raises(FileNotFoundError, match="nothing"):
        load_run(tmp_path / "nothing", *run.parts())


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("empty", "an empty file"),
        ("cut", r"tensor '.*': its data end at byte"),
        ("garbage", "not safetensors|a gzip"),
        ("foreign", "no saved run"),
        ("version", "saved in version 0 of the format, this is 2"),
        ("part", "a saved run without its 'extra'"),
        ("json", "not valid JSON"),
    ],
)
def test_a_damaged_file_is_refused_and_nothing_changes(
    damage: str, reason: str, tmp_path: Path
) -> None:
    run, file = changed_run(OPTIMIZERS["SGD"]), tmp_path / "run"
    save_run(file, *run.parts())
    content = {
        "empty": b"",
        "cut": file.read_bytes()[:-100],
        "garbage": b"garbage!" * 100,
    }
    metadata = {
        "foreign": {},
        "version": {"plastic_run": '{"version": 0}'},
        "part": {"plastic_run": '{"version": 2, "sleep": {}, "optimizers": []}'},
        "json": {"plastic_run": "{"},
    }
    if damage in metadata:
        write_arrays(file, {"a": mx.zeros(1)}, metadata[damage])
    else:
        file.write_bytes(content[damage])
    before = run.picture()
    with pytest.raises(FormatError, match=f"run: {reason}"):
        load_run(file, *run.parts())
    assert run.picture() == before


class Wider(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH + 1)


class Other(Net):
    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        self.layers[0] = RankLayer(
            gaussian(rng, WIDTH, 2), gaussian(rng, 2), gaussian(rng, 2, WIDTH + 1)
        )


class Unnormed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, affine=False)


class Single(Net):
    def __init__(self) -> None:
        super().__init__()
        self.layers[1].set_dtype(mx.float32)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Wider, r"'norm\.\w+' is mlx.core.float32 \(5\), in the model mlx.core.float32 \(6\)"),
        (Other, r"'layers\.0\.Vh' is .* \(r, 5\), in the model .* \(r, 6\)"),
        (Unnormed, r"'norm\.bias' is in the file alone"),
        (Single, r"'layers\.1\.\w+' is mlx.core.bfloat16"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_and_nothing_changes(
    kind: type[Net], reason: str, tmp_path: Path
) -> None:
    run = changed_run(OPTIMIZERS["SGD"])
    save_run(tmp_path / "run", *run.parts())
    model, optimizer = kind(), OPTIMIZERS["SGD"]()
    manager = PlasticityManager(model, optimizer, patience=1, cooldown=0, delta=10.0)
    before = [(n, bits(a)) for n, a in parameters(model).items()]
    with pytest.raises(ValueError, match=reason):
        load_run(tmp_path / "run", model, optimizer, manager)
    assert [(n, bits(a)) for n, a in parameters(model).items()] == before


@pytest.mark.parametrize("other", ["AdamW", "MultiOptimizer"])
def test_another_optimizer_is_refused_and_nothing_changes(other: str, tmp_path: Path) -> None:
    save_run(tmp_path / "run", *changed_run(OPTIMIZERS["SGD"]).parts())
    run = Run(OPTIMIZERS[other])
    before = run.model.layers[0].U
    with pytest.raises(ValueError, match=r"saved with the optimizer \['SGD'\], got"):
        load_run(tmp_path / "run", *run.parts())
    assert run.model.layers[0].U is before


def test_a_manager_of_other_settings_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    save_run(tmp_path / "run", *changed_run(OPTIMIZERS["SGD"]).parts())
    run = Run(OPTIMIZERS["SGD"], patience=9, cooldown=0, delta=10.0)
    before = run.picture()
    with pytest.raises(ValueError, match="patience was 1, is 9"):
        load_run(tmp_path / "run", *run.parts())
    assert run.picture() == before
