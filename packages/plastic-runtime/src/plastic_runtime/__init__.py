"""When and where the rank changes: PlasticityManager, sleep_dict, probes."""

from importlib.metadata import version

from plastic_runtime.attachment import attach
from plastic_runtime.batches import ResumableBatches
from plastic_runtime.blockwise import measure_grams
from plastic_runtime.callback import PlasticityCallback
from plastic_runtime.checkpoint import load_run, save_run
from plastic_runtime.events import (
    EventLog,
    PlasticityEvent,
    events_table,
    format_bytes,
    read_events,
)
from plastic_runtime.fisher import loss_grams
from plastic_runtime.gauge import Gauge
from plastic_runtime.generations import Generations
from plastic_runtime.gradientfactors import GradientFactors, gradient_factors
from plastic_runtime.gramfile import GramFile
from plastic_runtime.grams import Gram, LossGrams
from plastic_runtime.losses import LossRecord, append_loss, read_losses
from plastic_runtime.manager import PlasticityManager
from plastic_runtime.probes import (
    JacobianRank,
    dense_gradient,
    input_grams,
    jacobian_rank,
)
from plastic_runtime.schedule import Schedule
from plastic_runtime.scores import (
    gradient_score,
    rank_layers,
    relevance_score,
    sleeping_benefit,
)
from plastic_runtime.sleep import Parked, SleepDict
from plastic_runtime.sleepstore import SleepStore, is_store, verify_store
from plastic_runtime.state import Settings
from plastic_runtime.surgery import grow, park, park_components, rebalance, wake
from plastic_runtime.targets import Target

__version__ = version("plastic-runtime")

__all__ = [
    "EventLog",
    "Gauge",
    "Generations",
    "GradientFactors",
    "Gram",
    "GramFile",
    "JacobianRank",
    "LossGrams",
    "LossRecord",
    "Parked",
    "PlasticityCallback",
    "PlasticityEvent",
    "PlasticityManager",
    "ResumableBatches",
    "Schedule",
    "Settings",
    "SleepDict",
    "SleepStore",
    "Target",
    "append_loss",
    "attach",
    "dense_gradient",
    "events_table",
    "format_bytes",
    "gradient_factors",
    "gradient_score",
    "grow",
    "input_grams",
    "is_store",
    "jacobian_rank",
    "load_run",
    "loss_grams",
    "measure_grams",
    "park",
    "park_components",
    "rank_layers",
    "read_events",
    "read_losses",
    "rebalance",
    "relevance_score",
    "save_run",
    "sleeping_benefit",
    "verify_store",
    "wake",
]
