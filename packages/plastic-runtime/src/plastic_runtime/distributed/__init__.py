"""Several processes, on one machine or many, that do one work through ``mx.distributed``.

Stands on no other room: what is dealt out and summed up is the business of those who do it.
"""

from plastic_runtime.distributed.dealing import dealt, stretch
from plastic_runtime.distributed.joining import asked_backend, join
from plastic_runtime.distributed.sums import RunningSum, hand_on, taken_over
from plastic_runtime.distributed.team import LostConnectionError, Team, of_all
from plastic_runtime.distributed.together import (
    DisagreementError,
    await_file,
    check_alike,
    working_together,
)
from plastic_runtime.distributed.watch import STAYS_FOR_AS_MANY

__all__ = [
    "STAYS_FOR_AS_MANY",
    "DisagreementError",
    "LostConnectionError",
    "RunningSum",
    "Team",
    "asked_backend",
    "await_file",
    "check_alike",
    "dealt",
    "hand_on",
    "join",
    "of_all",
    "stretch",
    "taken_over",
    "working_together",
]
