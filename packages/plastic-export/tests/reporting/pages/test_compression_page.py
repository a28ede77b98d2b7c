"""What a page shows of a compression or a plan: maps, sizes, what stayed, every matrix."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from plastic_export import FormatError, LossPlan, compress, execute_plan, report_compression
from plastic_export.cli.command import main
from plastic_export.plan.offers import Choice
from plastic_export.reporting.pages.compression_view import ShownMatrix, view_compression
from plastic_export.reporting.plots.layer_map import bits_map, cell_of, ranks_map
from plastic_export.reporting.plots.plan_plot import plan_figure

Q, UP, DOWN, HEAD = (
    f"{name}.weight"
    for name in (
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
        "model.layers.0.mlp.down_proj",
        "lm_head",
    )
)
CHOICES = {
    Q: Choice(3, 6, 16),
    UP: Choice(4),
    DOWN: Choice(None, 8, 16),
    HEAD: Choice(6, 2, 16),
}
MakePlan = Callable[..., LossPlan]


@pytest.fixture
def planned(checkpoint_folder: Path, make_plan: MakePlan, tmp_path: Path) -> Path:
    """A plan of one budget, with bits, ranks, factors alone and matrices that stay."""
    file = tmp_path / "plan.json"
    make_plan(checkpoint_folder, file, CHOICES, "corrected")
    return file


@pytest.fixture
def written(checkpoint_folder: Path, planned: Path, tmp_path: Path) -> Path:
    """What was made by it."""
    execute_plan(checkpoint_folder, tmp_path / "out", planned, check=False)
    return tmp_path / "out"


class Page(HTMLParser):
    """The tags of a page, its attributes and its words."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: dict[str, list[str]] = {}
        self.text = ""
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def matrix(name: str, bits: int | None, rank: int = 0) -> ShownMatrix:
    return ShownMatrix(name, (64, 32), 0, bits, 32, rank, 0, 16, 4096, 1024, None, None)


def test_a_page_is_whole_in_itself_in_both_themes(written: Path, planned: Path) -> None:
    result = report_compression(written, plan=planned)
    assert result.page == written.with_name("out-report") / "report.html"
    names = ["report-bits.png", "report-ranks.png", "report-sizes.png"]
    assert [p.name for p in result.pictures] == names
    assert all(np.ptp(imread(picture)) > 0.5 for picture in result.pictures)
    page = Page(result.page)
    assert not {"script", "link", "iframe", "object", "a"} & page.tags
    inside = page.attributes["src"] + page.attributes["srcset"]
    assert len(inside) == 6
    assert all(source.startswith("data:image/svg+xml;base64,") for source in inside)
    assert page.attributes["media"] == ["(prefers-color-scheme: dark)"] * 3
    assert "default-src 'none'" in page.attributes["content"][0]
    assert "prefers-color-scheme: dark" in page.text
    for name in ("layers.0.self_attn.q_proj", "layers.1.mlp.down_proj", "lm_head"):
        assert name in page.text
    assert {p.name for p in written.iterdir()} == {
        *map(str, view_files(written)),
        "plastic.json",
        "README.md",
    }


def view_files(out: Path) -> dict[str, Any]:
    manifest = view_compression(out).manifest
    assert manifest is not None
    return manifest.files


def test_bits_and_ranks_stand_at_their_layer_and_projection() -> None:
    names = {"model.layers.9.mlp.up_proj": (4, 0), "model.layers.10.self_attn.q_proj": (3, 8)}
    matrices = [matrix(f"{name}.weight", *kept) for name, kept in names.items()]
    matrices += [
        matrix("lm_head.weight", None),
        matrix("model.layers.10.mlp.up_proj.weight", None, 4),
    ]
    bits, ranks = bits_map(matrices), ranks_map(matrices)
    assert bits.rows == ("9", "10", "outside")
    assert bits.columns == ("self_attn.q_proj", "mlp.up_proj", "lm_head")
    words = {(cell.row, cell.column): word for cell, word in bits.words.items()}
    assert words == {
        ("9", "mlp.up_proj"): "4",
        ("10", "self_attn.q_proj"): "3",
        ("10", "mlp.up_proj"): "rank",
        ("outside", "lm_head"): "",
    }
    assert ranks.shades[cell_of("model.layers.10.self_attn.q_proj")] == 1.0
    assert ranks.shades[cell_of("model.layers.10.mlp.up_proj")] == 0.5
    assert ranks.shades[cell_of("lm_head")] is None


def test_experts_of_a_layer_are_one_cell_of_their_mean() -> None:
    names = [f"model.layers.0.experts.{i}.w1.weight" for i in range(2)]
    bits = bits_map([matrix(name, bits) for name, bits in zip(names, (2, 3), strict=True)])
    assert dict(bits.words) == {cell_of(names[0]): "2.5"}


def test_the_budget_that_was_carried_out_is_marked(written: Path, planned: Path) -> None:
    view = view_compression(written, planned)
    assert view.plan is not None
    lines = {
        str(line.get_label()): line for line in plan_figure(view.plan, view.made).axes[0].lines
    }
    np.testing.assert_array_equal(lines["this one"].get_data(), lines["predicted"].get_data())
    plain = plan_figure(view.plan).axes[0].lines
    assert "this one" not in {str(line.get_label()) for line in plain}


@pytest.mark.parametrize("format", ["factored", "dense"])
def test_a_compression_by_rank_shows_its_ranks(
    checkpoint_folder: Path, tmp_path: Path, format: str
) -> None:
    out = tmp_path / "out"
    made = compress(checkpoint_folder, out, keep=0.5, format=format, check=False)
    result = report_compression(out, tmp_path / "page")
    assert [picture.name for picture in result.pictures] == ["report-ranks.png"]
    (shown,) = result.view.matrices.values()
    assert [m.rank for m in shown] == [m.rank for m in made.matrices]
    assert {one.name for one in result.view.left} == {"model.embed_tokens.weight", HEAD}
    assert "keep 0.5" in Page(result.page).text


def test_the_command_tells_what_it_is_by_its_content(
    written: Path, planned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = []
    for words in ([written, "--plan", planned], [planned]):
        with pytest.raises(SystemExit, match="0"):
            main(["report", *map(str, words), "--out", str(tmp_path / "page"), "--json"])
        records.append(json.loads(capsys.readouterr().out))
    of_output, of_plan = (record["budgets"][0] for record in records)
    assert of_output == of_plan
    assert of_output["bits_per_weight"] == pytest.approx(view_bits(planned))
    assert (of_output["matrices"], of_output["unchanged"]) == (15, 11)
    assert of_output["rank"] == 6 + 8 + 2
    with pytest.raises(SystemExit, match="0"):
        main(["report", str(planned), "--out", str(tmp_path / "page")])
    assert "11 of 15" in capsys.readouterr().out


def test_what_was_measured_is_shown_with_its_worst_windows(planned: Path, tmp_path: Path) -> None:
    file = tmp_path / "measured.json"
    worst = [{"window": 7, "kl": 0.25}, {"window": 2, "kl": 0.125}]
    figures = {"perplexity": 12.5, "kl": 0.1, "top1": 0.75, "windows": 24}
    record = {"text": "t.txt", "checkpoint": "OUT", **figures, "distance": {"worst_windows": worst}}
    file.write_text(json.dumps({"evaluations": [record], "scores": []}))
    result = report_compression(planned, tmp_path / "page", evaluation=file)
    text = Page(result.page).text
    assert "250.0 in window 7, 125.0 in window 2" in text
    assert "75.00%" in text
    for damaged in ("[]", '{"evaluations": []}', '{"evaluations": [{"text": 1}]}'):
        file.write_text(damaged)
        with pytest.raises(FormatError, match=r"measured\.json: "):
            report_compression(planned, tmp_path / "page", evaluation=file)


def view_bits(plan: Path) -> float:
    view = view_compression(plan)
    assert view.plan is not None
    return view.plan.budgets[0].bits_per_weight


def test_what_cannot_be_shown_is_one_line_and_leaves_nothing(
    written: Path, planned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.json"
    shutil.copy(planned, other)
    other.write_text(other.read_text().replace('"lower_bound": 0.0', '"lower_bound": 0.5'))
    page = tmp_path / "page"
    refused = {
        f"{other}: {written} was not made by this plan": [written, "--plan", other],
        "--plan must be None beside a plan": [planned, "--plan", planned],
        "--losses is about a training run; drop it": [planned, "--losses", planned],
        f"--plan is about a compression, and {tmp_path} is none": [tmp_path, "--plan", planned],
        "no such run; name a folder": [tmp_path / "nowhere"],
    }
    for said, words in refused.items():
        with pytest.raises(SystemExit, match="2"):
            main(["report", *map(str, words), "--out", str(page)])
        error = capsys.readouterr().err
        assert said in error, error
        assert error.count("\n") == 1
    with pytest.raises(FormatError, match="neither an output of `plastic compress` nor a plan"):
        report_compression(tmp_path)
    assert not page.exists()
