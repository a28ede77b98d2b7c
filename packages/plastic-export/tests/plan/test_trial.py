"""A plan tried as a whole: near what it does once it is written, and told from one width."""

from __future__ import annotations

from pathlib import Path

import pytest
from plastic_export.calibration.loss_grams import use_float32
from plastic_export.calibration.text import Calibration
from plastic_export.checkpoint.reader import open_checkpoint
from plastic_export.compression.by_plan import execute_plan
from plastic_export.compression.plan_file import LossPlan, read_plan
from plastic_export.compression.planning import plan_checkpoint
from plastic_export.model.load import load_model
from plastic_export.plan import trial as trials
from plastic_export.plan.choices import Choices
from plastic_export.plan.offers import Tried
from plastic_export.plan.probe import PriceProbe
from plastic_export.reporting.plan.made import present_plan

DATA = Path(__file__).parents[4] / "tests-integration" / "data" / "stdlib-llama"
FEW = Calibration(DATA / "calibration.txt", window=128, windows=48)
BUDGETS = [2.5, 3.5, 4.5]


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[LossPlan, Path]:
    file = tmp_path_factory.mktemp("trial") / "plan.json"
    return plan_checkpoint(DATA, file, calibration=FEW, budgets=BUDGETS), file


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_trial_is_near_what_the_written_checkpoint_does_on_the_same_tokens(
    planned: tuple[LossPlan, Path], budget: float, tmp_path: Path
) -> None:
    plan, file = planned
    execute_plan(DATA, tmp_path / "out", file, budget=budget)
    with open_checkpoint(DATA) as checkpoint:
        probe = PriceProbe.of(checkpoint, FEW)
    trial = plan.budget(budget).tried
    assert trial is not None
    assert trial.kl == pytest.approx(divergence(probe, tmp_path / "out"), rel=0.15)


def test_factors_are_tried_as_they_are_written(tmp_path: Path) -> None:
    """Backbones of 8 bits cost next to nothing, so the factors in 4 bits are what is tried."""
    file, choices = tmp_path / "plan.json", Choices(bits=(8,), factor_bits=(4,), bare=True)
    plan = plan_checkpoint(
        DATA, file, calibration=FEW, budgets=[4], format="corrected", choices=choices
    )
    execute_plan(DATA, tmp_path / "out", file)
    with open_checkpoint(DATA) as checkpoint:
        probe = PriceProbe.of(checkpoint, FEW)
    trial = plan.budgets[0].tried
    assert trial is not None
    assert trial.kl == pytest.approx(divergence(probe, tmp_path / "out"), rel=0.02)


def divergence(probe: PriceProbe, out: Path) -> float:
    """The divergence of another model on the tokens of a probe."""
    model = load_model(out)
    use_float32(model)
    probe._model, probe._chain = model, None
    return float(probe.token_divergences([], lambda paths: []).mean())


def test_a_plan_keeps_its_trials_and_says_what_one_width_would_cost(
    planned: tuple[LossPlan, Path],
) -> None:
    plan, file = planned
    assert read_plan(file) == plan
    for budget in plan.budgets:
        assert budget.tried is not None
        assert budget.tried.cost == budget.cost
        assert budget.predicted == budget.tried.kl
        assert budget.by == "prices"
        assert budget.rival_kl is None or budget.rival_kl >= budget.predicted


def test_one_width_is_taken_and_told_where_the_trial_finds_it_better(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def favouring(self: trials.PlanTrial, plan: object) -> Tried:
        sizes = {offer.choice for offer in plan.chosen.values()}  # type: ignore[attr-defined]
        return Tried(0.5 if len(sizes) == 1 else 0.9, 1e-2, plan.cost)  # type: ignore[attr-defined]

    monkeypatch.setattr(trials.PlanTrial, "of", favouring)
    file = tmp_path / "plan.json"
    plan = plan_checkpoint(DATA, file, calibration=FEW, budgets=[3.5])
    (budget,) = plan.budgets
    assert {(o.bits, o.group_size) for o in budget.chosen.values()} == {(3, 64)}
    assert (budget.by, budget.rival_kl) == ("one width", 0.9)
    assert budget.predicted == pytest.approx(0.5, rel=1e-15)
    lines = "\n".join(map(str, present_plan(plan, file, None).lines))
    assert "one width  for 3.5: 500 mnat as tried, and by prices 900" in lines


def test_one_width_is_not_tried_where_its_prices_leave_no_doubt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tried = list[object]()

    def counting(self: trials.PlanTrial, plan: object) -> Tried:
        tried.append(plan)
        return Tried(plan.cost, 0.0, plan.cost)  # type: ignore[attr-defined]

    monkeypatch.setattr(trials.PlanTrial, "of", counting)
    plan = plan_checkpoint(DATA, tmp_path / "plan.json", calibration=FEW, budgets=[2.5])
    assert len(tried) == 1
    assert plan.budgets[0].rival_kl is None
