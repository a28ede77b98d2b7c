"""Checkpoints in, checkpoints out: the plastic command, safetensors, stock mlx-lm folders, GGUF."""

from importlib.metadata import version

from plastic_core.files import FormatError, export_safetensors, load_safetensors
from plastic_runtime.dialling import (
    Manifest,
    MatrixPlan,
    MatrixRecord,
    Plan,
    Surveyed,
    plan_ranks,
    read_manifest,
)

from plastic_export.adapters.adapter import Adapter, LoraPair
from plastic_export.adapters.reading import read_adapter
from plastic_export.adapters.writing import write_adapter
from plastic_export.calibration.text import Calibration
from plastic_export.checkpoint.reader import Checkpoint, open_checkpoint
from plastic_export.checkpoint.warning import CheckpointWarning
from plastic_export.compression.by_plan import execute_plan
from plastic_export.compression.by_rank import compress
from plastic_export.compression.forecast import estimate_plan
from plastic_export.compression.nested import SizeRange
from plastic_export.compression.plan_file import LossPlan, read_plan
from plastic_export.compression.planning import plan_checkpoint
from plastic_export.compression.restoration import Restored, restore
from plastic_export.compression.summary import Summary, summarize
from plastic_export.compression.verification import verify
from plastic_export.compression.writer import Compressed
from plastic_export.dialling.writing import Dialled, dial
from plastic_export.estimate.processes import MachineEstimate, PlanEstimate
from plastic_export.evaluation.distance import Distance
from plastic_export.evaluation.distribution import Distribution
from plastic_export.evaluation.estimates import Comparison, Evaluation, ModelSize, RunSpeed
from plastic_export.evaluation.evaluation import compare, evaluate
from plastic_export.evaluation.intervals import Estimated
from plastic_export.evaluation.output_check import FailedCheckError, OutputCheck
from plastic_export.evaluation.settings import EvaluationSettings
from plastic_export.extraction.difference import LayerDifference
from plastic_export.extraction.extraction import Extracted, ExtractedForm, extract
from plastic_export.extraction.gain import Gain
from plastic_export.extraction.rest import LeftOut
from plastic_export.gguf.guide import gguf_guide
from plastic_export.healing.heal_folder import Healed, heal
from plastic_export.healing.loop import HealingOptions
from plastic_export.hub.push import Pushed, push
from plastic_export.model.load import load_model
from plastic_export.model.text import text_windows
from plastic_export.model.tokenizer import load_tokenizer
from plastic_export.plan.budgets import Budget, parse_size
from plastic_export.plan.choices import Choices
from plastic_export.plan.offers import BitsPlan, Candidate, Offer, Offered, plan_bits
from plastic_export.reporting.pages.compression_page import CompressionReport, report_compression
from plastic_export.reporting.pages.run_page import Report, report
from plastic_export.reshaping.adding import merge
from plastic_export.reshaping.into_base import MergedBase, merge_into
from plastic_export.reshaping.rank_choice import RankGoal
from plastic_export.reshaping.resizing import Reshaped, resize
from plastic_export.serving.requests.size_names import ListedSize
from plastic_export.serving.size_server import SizeServer
from plastic_export.shipping.exporting import export
from plastic_export.shipping.request import Exported
from plastic_export.tasks.judging import evaluate_tasks
from plastic_export.tasks.scores import ScoreDifference, TaskScore, TaskSettings
from plastic_export.training.best_state import Validated
from plastic_export.training.course import DivergedError, Listener
from plastic_export.training.forgetting.dial import DialPoint
from plastic_export.training.run import TrainedRun, train
from plastic_export.training.settings import TrainingOptions
from plastic_export.training.sizes.curve import RunSize
from plastic_export.training.sizes.dial_run import DialledRun, dial_run

__version__ = version("plastic-export")

__all__ = [
    "Adapter",
    "BitsPlan",
    "Budget",
    "Calibration",
    "Candidate",
    "Checkpoint",
    "CheckpointWarning",
    "Choices",
    "Comparison",
    "Compressed",
    "CompressionReport",
    "DialPoint",
    "Dialled",
    "DialledRun",
    "Distance",
    "Distribution",
    "DivergedError",
    "Estimated",
    "Evaluation",
    "EvaluationSettings",
    "Exported",
    "Extracted",
    "ExtractedForm",
    "FailedCheckError",
    "FormatError",
    "Gain",
    "Healed",
    "HealingOptions",
    "LayerDifference",
    "LeftOut",
    "ListedSize",
    "Listener",
    "LoraPair",
    "LossPlan",
    "MachineEstimate",
    "Manifest",
    "MatrixPlan",
    "MatrixRecord",
    "MergedBase",
    "ModelSize",
    "Offer",
    "Offered",
    "OutputCheck",
    "Plan",
    "PlanEstimate",
    "Pushed",
    "RankGoal",
    "Report",
    "Reshaped",
    "Restored",
    "RunSize",
    "RunSpeed",
    "ScoreDifference",
    "SizeRange",
    "SizeServer",
    "Summary",
    "Surveyed",
    "TaskScore",
    "TaskSettings",
    "TrainedRun",
    "TrainingOptions",
    "Validated",
    "compare",
    "compress",
    "dial",
    "dial_run",
    "estimate_plan",
    "evaluate",
    "evaluate_tasks",
    "execute_plan",
    "export",
    "export_safetensors",
    "extract",
    "gguf_guide",
    "heal",
    "load_model",
    "load_safetensors",
    "load_tokenizer",
    "merge",
    "merge_into",
    "open_checkpoint",
    "parse_size",
    "plan_bits",
    "plan_checkpoint",
    "plan_ranks",
    "push",
    "read_adapter",
    "read_manifest",
    "read_plan",
    "report",
    "report_compression",
    "resize",
    "restore",
    "summarize",
    "text_windows",
    "train",
    "verify",
    "write_adapter",
]
