"""Errors that end a stage, each with its exit code.

A message is an instruction: file, row or key, actual and expected value, the next command.
"""

import difflib
from collections.abc import Iterable


class NexaError(Exception):
    """An error that a user can act on. `exit_code` follows sysexits.h where possible."""

    exit_code = 1


class UsageError(NexaError):
    """The command line does not make sense."""

    exit_code = 2


class QualityGateMissed(NexaError):
    """A run-level quality gate stopped the run."""

    exit_code = 3


class InputError(NexaError):
    """Bad input: a configuration key, a column, a row, a torn file."""

    exit_code = 65


class InputMissing(NexaError):
    """An input is missing, or does not match its manifest."""

    exit_code = 66


class ProviderUnusable(NexaError):
    """The model API refuses all requests: authentication, quota, model, address."""

    exit_code = 69


class StorageFailed(NexaError):
    """The disk is full, or a write or fsync failed."""

    exit_code = 74


class Locked(NexaError):
    """Another process holds the resource, or an upstream stage failed."""

    exit_code = 75


class BudgetReached(NexaError):
    """The budget is spent; the answers so far are kept."""

    exit_code = 77


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean "x"?)` for the nearest known name, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f' (did you mean "{near[0]}"?)' if near else ""
