"""Errors that are the user's to mend: the message says what is wrong, the hint what would help."""

from __future__ import annotations


class UserError(ValueError):
    """Something given to mmalign cannot be used. Printed without a traceback on the command line.

    Args:
        message: What is wrong, naming the file, record or option.
        hint: What would have been right, or what to do next.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class BadSample(ValueError):
    """A sample that a model cannot take; the message says what is wrong and what would help."""
