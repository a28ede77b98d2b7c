"""Checkpoints in, checkpoints out: the plastic command, safetensors, stock mlx-lm folders, GGUF."""

from importlib.metadata import version

from plastic_runtime.files import FormatError, export_safetensors, load_safetensors

from plastic_export.calibrate import Calibration
from plastic_export.compression import Compressed, compress
from plastic_export.estimates import Difference, Evaluation
from plastic_export.evaluation import compare, evaluate
from plastic_export.gguf import gguf_guide
from plastic_export.healfolder import Healed, heal
from plastic_export.healing import Healing
from plastic_export.lossplan import BitsPlan, plan_bits
from plastic_export.manifest import Manifest, MatrixRecord, read_manifest
from plastic_export.models import load_model, load_tokenizer, text_windows
from plastic_export.plan import MatrixPlan, Plan, Surveyed, plan_ranks
from plastic_export.planfile import LossPlan, read_plan
from plastic_export.planning import plan_checkpoint
from plastic_export.quantised import Quantised, execute_plan
from plastic_export.reader import Checkpoint, open_checkpoint
from plastic_export.restoration import Restored, restore
from plastic_export.runreport import Report, report
from plastic_export.summary import Summary, summarize
from plastic_export.training import DivergedError, Trained, train
from plastic_export.trainsettings import Training
from plastic_export.verification import verify

__version__ = version("plastic-export")

__all__ = [
    "BitsPlan",
    "Calibration",
    "Checkpoint",
    "Compressed",
    "Difference",
    "DivergedError",
    "Evaluation",
    "FormatError",
    "Healed",
    "Healing",
    "LossPlan",
    "Manifest",
    "MatrixPlan",
    "MatrixRecord",
    "Plan",
    "Quantised",
    "Report",
    "Restored",
    "Summary",
    "Surveyed",
    "Trained",
    "Training",
    "compare",
    "compress",
    "evaluate",
    "execute_plan",
    "export_safetensors",
    "gguf_guide",
    "heal",
    "load_model",
    "load_safetensors",
    "load_tokenizer",
    "open_checkpoint",
    "plan_bits",
    "plan_checkpoint",
    "plan_ranks",
    "read_manifest",
    "read_plan",
    "report",
    "restore",
    "summarize",
    "text_windows",
    "train",
    "verify",
]
