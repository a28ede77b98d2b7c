"""A plan as a JSON file: written by ``plastic plan``, read by ``plastic compress``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

from plastic_core.files import FormatError, json_digest, read_json, sha256_file, write_json

from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.checkpoint.tensors import Kind
from plastic_export.folder.manifest import source_record
from plastic_export.format.protocol import Format
from plastic_export.format.table import PLAN_FORMATS, format_named
from plastic_export.plan.offers import BitsPlan, Candidate, Choice, Offer, Offered, Tried

SCHEMA = 5
_PLAN = (
    "schema", "format", "source", "calibration", "grams", "left", "left_bytes", "skipped",
    "budgets", "matrices",
)  # fmt: skip
_BUDGET = (
    "asked", "bits_per_weight", "bytes", "predicted_kl", "lower_bound", "tried", "by", "rival_kl",
    "matrices",
)  # fmt: skip
_MATRIX = (
    "shape", "dtype", "group_size", "source_bytes", "price_factors", "error_factors", "kind",
    "experts", "offers",
)  # fmt: skip
_OFFER = ("bits", "group_size", "rank", "factor_bits", "bytes", "predicted_kl")
_SOURCE = ("name", "revision", "files", "tensors", "config_sha256")


class Skipped(NamedTuple):
    """A weight that was asked for and cannot be planned; it stays as it is.

    Attributes:
        name: The name of the weight.
        nbytes: Its bytes in the source.
        reason: Why, in words.
    """

    name: str
    nbytes: int
    reason: str


@dataclass(frozen=True)
class LossPlan:
    """Plans for one source, one per budget, and what they were made from.

    Attributes:
        source: What identifies the source; see `source_identity`.
        calibration: The options of the calibration.
        grams: Name of the file of Grams beside the plan, and its SHA-256.
        matrices: What each matrix offers, in the order of the checkpoint.
        left: Names of the weights of two and more axes that are left as they are whatever the
            budget.
        left_bytes: Bytes of all tensors of the source but ``matrices``.
        budgets: The plans.
        format: Name of the format that they are written in.
        skipped: The weights that were to be planned and could not be.

    Examples:
        >>> plan = read_plan("plan.json")
        >>> plan.format, [budget.asked for budget in plan.budgets]
        ('mixed', ['4.5'])
    """

    source: Mapping[str, Any]
    calibration: Mapping[str, Any]
    grams: tuple[str, str]
    matrices: tuple[Offered, ...]
    left: tuple[str, ...]
    left_bytes: int
    budgets: tuple[BitsPlan, ...]
    format: str = "mixed"
    skipped: tuple[Skipped, ...] = ()

    def budget(self, asked: float | str | None = None) -> BitsPlan:
        """Return the plan of one budget, which need not be named where there is only one.

        Args:
            asked: Bits per weight, or the budget as the plan states it (`BitsPlan.asked`).

        Raises:
            ValueError: If there is none, or there are several and none is named.
        """
        known = ", ".join(b.asked for b in self.budgets)
        if asked is None:
            if len(self.budgets) == 1:
                return self.budgets[0]
            raise ValueError(f"the plan holds the budgets {known}; choose one of them")
        name = asked if isinstance(asked, str) else f"{asked:g}"
        for plan in self.budgets:
            if plan.asked == name:
                return plan
        raise ValueError(
            f"the budget must be one of the plan's, {known}, got {name}; plan again for another"
        )


def source_identity(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return all that a plan depends on: types and shapes of tensors, bytes of files, config.json.

    Cost: reads every byte of the weight files.
    """
    return source_record(checkpoint) | {"config_sha256": json_digest(checkpoint.config)}


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
    """Return the file of Grams beside the plan ``file``, its digest checked.

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
    """Write a plan.

    Its choices may be edited: ``bits``, ``group_size``, ``rank`` and ``factor_bits`` of a matrix to
    any that it offers together. Without a rank the last two may be left out; without a group size
    it is that of the matrix.

    Raises:
        ValueError: If ``file`` is a link or a folder.
        OSError: If it cannot be written.

    Examples:
        >>> plan = read_plan("plan.json")
        >>> write_plan(Path("copy.json"), plan)
        >>> read_plan("copy.json") == plan
        True
    """
    matrices = {m.name: _matrix_record(m) for m in plan.matrices}
    record = {
        "schema": SCHEMA,
        "format": plan.format,
        "source": dict(plan.source),
        "calibration": dict(plan.calibration),
        "grams": {"file": plan.grams[0], "sha256": plan.grams[1]},
        "left": list(plan.left),
        "left_bytes": plan.left_bytes,
        "skipped": [m._asdict() for m in plan.skipped],
        "budgets": [_budget_record(b) for b in plan.budgets],
        "matrices": matrices,
    }
    write_json(file, record)


def _matrix_record(m: Offered) -> dict[str, Any]:
    matrix = m.matrix
    return {
        "shape": list(matrix.shape),
        "dtype": matrix.dtype,
        "group_size": matrix.group_size,
        "source_bytes": matrix.source_bytes,
        "price_factors": {str(bits): factor for bits, factor in m.price_factors.items()},
        "error_factors": {str(bits): factor for bits, factor in m.error_factors.items()},
        "kind": matrix.kind,
        "experts": matrix.experts,
        "offers": [_offer_record(o) for o in m.offers],
    }


def _budget_record(b: BitsPlan) -> dict[str, Any]:
    return {
        "asked": b.asked,
        "bits_per_weight": b.budget,
        "bytes": b.nbytes,
        "predicted_kl": b.predicted,
        "lower_bound": b.lower_bound,
        "tried": None if b.tried is None else b.tried._asdict(),
        "by": b.by,
        "rival_kl": b.rival_kl,
        "matrices": {name: _offer_record(o) for name, o in b.chosen.items()},
    }


def _offer_record(o: Offer) -> dict[str, Any]:
    groups = {"group_size": o.group_size} if o.group_size else {}
    part = {"rank": o.rank, "factor_bits": o.factor_bits} if o.rank else {}
    return {"bits": o.bits, **groups, **part, "bytes": o.nbytes, "predicted_kl": o.cost}


def is_plan(file: Path) -> bool:
    """Tell whether a file looks like a plan, of any schema."""
    try:
        raw = read_json(file)
    except FormatError:
        return False
    return {"schema", "budgets", "matrices"} <= raw.keys()


def read_plan(file: str | Path) -> LossPlan:
    """Read a plan, edited or not; bytes and predictions follow from the bits.

    Raises:
        FormatError: If it is damaged, of another schema, or gives a matrix what it does not offer,
            or nothing.
        OSError: If it does not exist or cannot be read.

    Examples:
        >>> read_plan("plan.json").budget().asked
        '4.5'
    """
    file = Path(file)
    raw = read_json(file)
    if raw.get("schema") != SCHEMA:
        reason = f"schema {raw.get('schema')!r} is unknown, this version reads {SCHEMA}"
        raise FormatError.about(file, reason, "name a file that `plastic plan` wrote")
    try:
        _check_entries(raw, _PLAN)
        matrices = tuple(_matrix(name, m) for name, m in raw["matrices"].items())
        format = format_named(raw["format"], PLAN_FORMATS)
        return LossPlan(
            source=_source(raw["source"]),
            calibration=dict(raw["calibration"]),
            grams=(str(raw["grams"]["file"]), str(raw["grams"]["sha256"])),
            matrices=matrices,
            left=tuple(raw["left"]),
            left_bytes=int(raw["left_bytes"]),
            budgets=tuple(_budget(b, matrices, format) for b in raw["budgets"]),
            format=format.name,
            skipped=tuple(Skipped(**m) for m in raw.get("skipped", ())),
        )
    except KeyError as error:
        raise FormatError.about(file, f"{error} is missing", "plan again") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise FormatError.about(file, str(error), "correct it, or plan again") from error


def _source(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {k: raw[k] for k in _SOURCE} | {k: dict(raw[k]) for k in ("files", "tensors")}


def _matrix(name: str, raw: Mapping[str, Any]) -> Offered:
    with _of(name):
        _check_entries(raw, _MATRIX)
        out, in_ = raw["shape"]
        matrix = Candidate(
            name=name,
            shape=(int(out), int(in_)),
            dtype=str(raw["dtype"]),
            group_size=int(raw["group_size"]),
            source_bytes=int(raw["source_bytes"]),
            kind=_kind(raw["kind"]),
            experts=int(raw["experts"]),
        )
        factors = [
            {int(bits): float(factor) for bits, factor in raw[name].items()}
            for name in ("price_factors", "error_factors")
        ]
        return Offered(matrix, tuple(map(_offer, raw["offers"])), *factors)


@contextmanager
def _of(name: str) -> Iterator[None]:
    """Name the matrix of which an entry is wrong."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{error} of {name!r} is missing") from error
    except (AttributeError, TypeError, ValueError) as error:
        text = str(error)
        raise ValueError(text if repr(name) in text else f"{name!r}: {text}") from error


def _check_entries(raw: Any, known: Sequence[str]) -> None:
    """Refuse what is no object, and entries that nothing reads: they may be misspelt."""
    if not isinstance(raw, dict):
        raise ValueError(f"{raw!r:.60} is no object")
    if unknown := [name for name in raw if name not in known]:
        raise ValueError(f"the entry {unknown[0]!r} is not known, but {', '.join(known)} are")


def _offer(raw: Mapping[str, Any]) -> Offer:
    return Offer(raw["bits"], int(raw["bytes"]), float(raw["predicted_kl"]), *_choice(raw)[1:])


def _choice(raw: Mapping[str, Any]) -> Choice:
    _check_entries(raw, _OFFER)
    rank, size = raw.get("rank", 0), raw.get("group_size", 0)
    return Choice(raw["bits"], rank, raw.get("factor_bits", 0) if rank else 0, size)


def _named_choice(name: str, raw: Mapping[str, Any]) -> Choice:
    with _of(name):
        return _choice(raw)


def _kind(raw: Any) -> Kind:
    for kind in get_args(Kind):
        if raw == kind:
            return cast(Kind, kind)
    raise ValueError(f"`kind` must be one of {', '.join(get_args(Kind))}, got {raw!r}")


def _budget(raw: Mapping[str, Any], matrices: tuple[Offered, ...], format: Format) -> BitsPlan:
    _check_entries(raw, _BUDGET)
    choices = {name: _named_choice(name, choice) for name, choice in raw["matrices"].items()}
    if unknown := choices.keys() - {m.name for m in matrices}:
        raise ValueError(f"bits for {min(unknown)!r}, which is not among the matrices")
    format.check(choices)
    return BitsPlan(
        budget=float(raw["bits_per_weight"]),
        asked=str(raw["asked"]),
        weights=sum(m.matrix.weights for m in matrices),
        lower_bound=float(raw["lower_bound"]),
        chosen={m.name: m.offer(*choices[m.name]) for m in matrices},
        tried=None if raw["tried"] is None else _tried(raw["tried"]),
        by=raw["by"],
        rival_kl=raw["rival_kl"],
    )


def _tried(raw: Mapping[str, Any]) -> Tried:
    _check_entries(raw, Tried._fields)
    return Tried(*(float(raw[name]) for name in Tried._fields))
