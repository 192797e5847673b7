"""Errors that the suite raises on bad input. Each message names what was wrong, where, and what to
do.
"""

from __future__ import annotations


class QBenchError(Exception):
    """Base of every error that this package raises on purpose."""


class SchemeError(QBenchError, ValueError):
    """A scheme string that the grammar ``W<bits>A<bits>[-g<group>][-sym|-asym]`` does not allow."""


class CheckpointError(QBenchError, ValueError):
    """A checkpoint folder that is missing, incomplete, corrupt or of an unknown architecture."""


class BaselineError(QBenchError, ValueError):
    """A baseline file that is missing, fails its schema, or lacks a cell."""


class NonFiniteError(QBenchError, ValueError):
    """A NaN or an infinity where a number is needed; never turned into a score."""


class CalibrationError(QBenchError, ValueError):
    """Calibration data that the method cannot use (empty, wrong shape, wrong vocabulary)."""


class TaskError(QBenchError, ValueError):
    """An unknown task, or a request for more items than the task has."""
