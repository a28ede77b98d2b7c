"""A plan of bits as a JSON file: written by ``plastic plan``, read by ``plastic compress``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plastic_export.atomic import sha256_file, write_json
from plastic_export.errors import FormatError
from plastic_export.lossplan import BitsPlan, Offer, Offered
from plastic_export.manifest import source_record
from plastic_export.reader import Checkpoint
from plastic_export.validate import read_json

SCHEMA = 1
_SOURCE = ("name", "revision", "files", "tensors", "config_sha256")


@dataclass(frozen=True)
class LossPlan:
    """Plans for one source, one per budget, and what they were made from.

    Attributes:
        source: What identifies the source; see `source_identity`.
        calibration: The options of the calibration.
        grams: Name of the file of Grams beside the plan, and its SHA-256.
        matrices: What each matrix offers, in the order of the checkpoint.
        left: Names of the matrices that are left as they are whatever the budget.
        left_bytes: Bytes of all tensors of the source but ``matrices``.
        budgets: The plans.
    """

    source: Mapping[str, Any]
    calibration: Mapping[str, Any]
    grams: tuple[str, str]
    matrices: tuple[Offered, ...]
    left: tuple[str, ...]
    left_bytes: int
    budgets: tuple[BitsPlan, ...]

    def budget(self, bits_per_weight: float | None = None) -> BitsPlan:
        """The plan of one budget, which need not be named where there is only one.

        Raises:
            ValueError: If there is none, or there are several and none is named.
        """
        known = ", ".join(f"{b.budget:g}" for b in self.budgets)
        if bits_per_weight is None:
            if len(self.budgets) == 1:
                return self.budgets[0]
            raise ValueError(f"the plan holds {known} bits per weight; choose one of them")
        for plan in self.budgets:
            if plan.budget == bits_per_weight:
                return plan
        raise ValueError(
            f"`bits_per_weight` must be one of the plan's, {known}, got {bits_per_weight:g}; "
            "plan again for another"
        )


def source_identity(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a plan depends on: every tensor's type and shape, every file's bytes, config.json.

    Cost: reads every byte of the weight files.
    """
    canonical = json.dumps(checkpoint.config, sort_keys=True).encode()
    config = {"config_sha256": hashlib.sha256(canonical).hexdigest()}
    return source_record(checkpoint) | config


def check_source(plan: LossPlan, checkpoint: Checkpoint, file: Path) -> None:
    """Refuse a plan that was made for another source.

    Raises:
        FormatError: If it was; the message names the first difference.
    """
    found = source_identity(checkpoint)
    for kind, what in (("tensors", "tensor"), ("files", "file")):
        theirs, ours = plan.source[kind], found[kind]
        for name in sorted(theirs.keys() | ours.keys()):
            if theirs.get(name) != ours.get(name):
                raise _other_source(plan, checkpoint, file, f"{what} {name!r} differs")
    if plan.source["config_sha256"] != found["config_sha256"]:
        raise _other_source(plan, checkpoint, file, "config.json differs")


def _other_source(
    plan: LossPlan, checkpoint: Checkpoint, file: Path, difference: str
) -> FormatError:
    reason = f"the plan was made for {plan.source['name']!r}, not for {checkpoint.name!r}"
    remedy = "plan for this source with `plastic plan`"
    return FormatError.about(file, f"{reason}: {difference}", remedy)


def grams_file(plan: LossPlan, file: Path) -> Path:
    """The file of Grams beside the plan ``file``, its digest checked.

    Raises:
        FormatError: If it is missing or not the one that the plan was made with.
    """
    name, digest = plan.grams
    path = file.parent / name
    remedy = f"put it beside {file.name}, or make both again with `plastic plan --force`"
    if Path(name).name != name:
        raise FormatError.about(file, f"names Grams in another folder, {name!r}", remedy)
    if not path.is_file():
        raise FormatError.about(path, "missing: the Grams of the plan's calibration", remedy)
    if sha256_file(path) != digest:
        raise FormatError.about(path, "not the Grams that the plan was made with", remedy)
    return path


def write_plan(file: Path, plan: LossPlan) -> None:
    """Write a plan. Its choices may be edited: ``bits`` of a matrix to any that it offers.

    Raises:
        ValueError: If ``file`` is a link or a folder.
        OSError: If it cannot be written.
    """
    matrices = {m.name: _matrix_record(m) for m in plan.matrices}
    record = {
        "schema": SCHEMA,
        "source": dict(plan.source),
        "calibration": dict(plan.calibration),
        "grams": {"file": plan.grams[0], "sha256": plan.grams[1]},
        "left": list(plan.left),
        "left_bytes": plan.left_bytes,
        "budgets": [_budget_record(b) for b in plan.budgets],
        "matrices": matrices,
    }
    write_json(file, record)


def _matrix_record(m: Offered) -> dict[str, Any]:
    return {
        "shape": list(m.shape),
        "dtype": m.dtype,
        "group_size": m.group_size,
        "source_bytes": m.source_bytes,
        "offers": [_offer_record(o) for o in m.offers],
    }


def _budget_record(b: BitsPlan) -> dict[str, Any]:
    return {
        "bits_per_weight": b.budget,
        "bytes": b.nbytes,
        "predicted_kl": b.cost,
        "lower_bound": b.lower_bound,
        "matrices": {name: _offer_record(o) for name, o in b.chosen.items()},
    }


def _offer_record(o: Offer) -> dict[str, Any]:
    return {"bits": o.bits, "bytes": o.nbytes, "predicted_kl": o.cost}


def read_plan(file: str | Path) -> LossPlan:
    """Read a plan, edited or not; bytes and predictions follow from the bits.

    Raises:
        FormatError: If it is damaged, of another schema, or gives a matrix bits that it does not
            offer, or none.
        OSError: If it does not exist or cannot be read.
    """
    file = Path(file)
    raw = read_json(file)
    if raw.get("schema") != SCHEMA:
        reason = f"schema {raw.get('schema')!r} is unknown, this version reads {SCHEMA}"
        raise FormatError.about(file, reason, "name a file that `plastic plan` wrote")
    try:
        matrices = tuple(_matrix(name, m) for name, m in raw["matrices"].items())
        return LossPlan(
            source={k: raw["source"][k] for k in _SOURCE},
            calibration=dict(raw["calibration"]),
            grams=(str(raw["grams"]["file"]), str(raw["grams"]["sha256"])),
            matrices=matrices,
            left=tuple(raw["left"]),
            left_bytes=int(raw["left_bytes"]),
            budgets=tuple(_budget(b, matrices) for b in raw["budgets"]),
        )
    except KeyError as error:
        raise FormatError.about(file, f"{error} is missing", "plan again") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise FormatError.about(file, str(error), "correct it, or plan again") from error


def _matrix(name: str, raw: Mapping[str, Any]) -> Offered:
    out, in_ = raw["shape"]
    return Offered(
        name=name,
        shape=(int(out), int(in_)),
        dtype=str(raw["dtype"]),
        group_size=int(raw["group_size"]),
        source_bytes=int(raw["source_bytes"]),
        offers=tuple(Offer(o["bits"], o["bytes"], o["predicted_kl"]) for o in raw["offers"]),
    )


def _budget(raw: Mapping[str, Any], matrices: tuple[Offered, ...]) -> BitsPlan:
    bits = {name: choice["bits"] for name, choice in raw["matrices"].items()}
    if unknown := bits.keys() - {m.name for m in matrices}:
        raise ValueError(f"bits for {min(unknown)!r}, which is not among the matrices")
    return BitsPlan(
        budget=float(raw["bits_per_weight"]),
        weights=sum(m.weights for m in matrices),
        lower_bound=float(raw["lower_bound"]),
        chosen={m.name: m.offer(bits[m.name]) for m in matrices},
    )
