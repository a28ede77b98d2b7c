"""Which runs are asked for: rates first, then every rank and seed at the rate that was best."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from kept.measurements import Figures, Measurements, NotMeasured
from plastic_core.files import json_digest, sha256_file
from plastic_export import open_checkpoint
from real_model import CACHE
from training.texts import read_texts

from finetune.making import OURS
from finetune.peft_peers import PEFT_METHODS

RUN = "run"
TUNED_AT = 8  # the rank that rates are chosen at
RATES = (1e-3, 1.4e-3, 2e-3)
RATES_OF = {"adalora": (1e-3, 3e-3, 1e-2), "hira": (1e-3, 3e-3, 1e-2), "base": (1e-4,)}
SHARED = ("task", "steps", "batch", "length", "windows", "warm", "probe", "corrected")
OURS_ALONE = ("start", "every", "norm", "along")
OWN = (*OURS_ALONE, "cautious")  # what a method may differ in from the same one


class KeptRun(NamedTuple):
    """A run of the file."""

    asked: dict[str, Any]
    found: Figures


def shared_setting(options: argparse.Namespace) -> dict[str, Any]:
    """Return all that every run depends on."""
    with open_checkpoint(options.source) as checkpoint:
        weights = [sha256_file(file) for file in sorted(checkpoint.weight_files)]
        base = json_digest([*weights, checkpoint.config])[:12]
    files = [file for file in (options.train, options.valid, *options.old) if file is not None]
    texts = json_digest([sha256_file(file) for file in files])[:12]
    return {name: getattr(options, name) for name in SHARED} | {"base": base, "texts": texts}


def window_file(options: argparse.Namespace, shared: dict[str, Any]) -> Path:
    """Return the file of all windows of tokens, made first if it is not there."""
    file = CACHE / f"windows-{json_digest(shared)[:12]}.npz"
    if not file.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        read_texts(options).save(file)
    return file


def make_runs(
    options: argparse.Namespace, measurements: Measurements, shared: dict[str, Any]
) -> None:
    """Make all runs that are not kept yet; those that fail are named."""
    for method in options.methods:
        setting = shared | own_setting(options, method) | {"method": method}
        rates = options.rates or RATES_OF.get(method, RATES)
        best = best_rate(measurements, setting, rates)
        for rank, seed in sizes_and_seeds(options, method):
            if best is not None:
                attempt(measurements, setting | {"rank": rank, "seed": seed, "rate": best})


def own_setting(options: argparse.Namespace, method: str) -> dict[str, Any]:
    """Return what is asked of one method; None is what it does by default."""
    own = {name: getattr(options, name) if method == OURS else None for name in OURS_ALONE}
    return own | {"cautious": None if method in PEFT_METHODS else options.cautious}


def sizes_and_seeds(options: argparse.Namespace, method: str) -> Iterator[tuple[int, int]]:
    """Yield what is left when rates are chosen: ranks, then seeds."""
    if method == "base":
        return
    for seed in range(options.seeds):
        for rank in options.ranks:
            yield rank, seed


def best_rate(
    measurements: Measurements, setting: dict[str, Any], rates: tuple[float, ...]
) -> float | None:
    """Return the rate of the lowest validation loss at one rank and seed; None if none ran."""
    at = setting | {"rank": TUNED_AT, "seed": 0}
    found = {rate: attempt(measurements, at | {"rate": rate}) for rate in rates}
    ran = {rate: one["loss"] for rate, one in found.items() if one is not None}
    return min(ran, key=lambda rate: ran[rate], default=None)


def attempt(measurements: Measurements, setting: dict[str, Any]) -> Figures | None:
    """Make a run, or take it from the file; None, and a line that says why, if it failed."""
    try:
        return measurements.of(RUN, **setting)
    except NotMeasured as error:
        named = " ".join(str(setting[name]) for name in ("method", "rank", "rate", "seed"))
        print(f"left out: {named}: {error}", file=sys.stderr)
        return None
