"""When and where the rank changes: PlasticityManager, sleep_dict, probes."""

from importlib.metadata import version

from plastic_runtime.dialling.dial import Dial, DialStop, Sizes
from plastic_runtime.log.events import (
    EventLog,
    PlasticityEvent,
    events_table,
    format_bytes,
    read_events,
)
from plastic_runtime.log.loss_log import LossRecord, append_loss, read_losses
from plastic_runtime.log.rank_changes import RankChange, rank_changes
from plastic_runtime.manager.manager import PlasticityManager
from plastic_runtime.manager.state import Settings
from plastic_runtime.measure.blockwise import measure_grams
from plastic_runtime.measure.fisher import loss_grams
from plastic_runtime.measure.gram_file import GramFile
from plastic_runtime.measure.grams import Gram, LossGrams
from plastic_runtime.measure.jacobian import JacobianRank, jacobian_rank
from plastic_runtime.measure.probes import input_grams
from plastic_runtime.measure.progress import Noted, Track, Weighted, untracked
from plastic_runtime.sleep.sleep_dict import Parked, SleepDict
from plastic_runtime.sleep.store import SleepStore, is_store, verify_store
from plastic_runtime.surgery.byte_count import ByteCount
from plastic_runtime.surgery.gauge import Gauge
from plastic_runtime.surgery.gradient_factors import GradientFactors, gradient_factors
from plastic_runtime.surgery.probe_loss import find_rank_layers
from plastic_runtime.surgery.ranks import grow, park, shrink_to, soft_threshold, wake
from plastic_runtime.surgery.rewriting import rebalance, regauge
from plastic_runtime.surgery.schedule import Schedule
from plastic_runtime.surgery.scores import gradient_score, relevance_score
from plastic_runtime.surgery.sleepers import sleeping_benefit
from plastic_runtime.training.attachment import attach
from plastic_runtime.training.batches import ResumableBatches
from plastic_runtime.training.callback import PlasticityCallback
from plastic_runtime.training.cautious import CautiousAdamW
from plastic_runtime.training.generations import Generations
from plastic_runtime.training.saved_run import load_run, save_run

__version__ = version("plastic-runtime")

__all__ = [
    "ByteCount",
    "CautiousAdamW",
    "Dial",
    "DialStop",
    "EventLog",
    "Gauge",
    "Generations",
    "GradientFactors",
    "Gram",
    "GramFile",
    "JacobianRank",
    "LossGrams",
    "LossRecord",
    "Noted",
    "Parked",
    "PlasticityCallback",
    "PlasticityEvent",
    "PlasticityManager",
    "RankChange",
    "ResumableBatches",
    "Schedule",
    "Settings",
    "Sizes",
    "SleepDict",
    "SleepStore",
    "Track",
    "Weighted",
    "append_loss",
    "attach",
    "events_table",
    "find_rank_layers",
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
    "rank_changes",
    "read_events",
    "read_losses",
    "rebalance",
    "regauge",
    "relevance_score",
    "save_run",
    "shrink_to",
    "sleeping_benefit",
    "soft_threshold",
    "untracked",
    "verify_store",
    "wake",
]
