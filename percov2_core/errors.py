"""The exceptions that this package raises on purpose.

    PerCoError
    |- ConfigError        (ValueError)    a setting, a name or an argument is wrong
    |- ImageError         (ValueError)    the picture cannot be coded
    |- BitstreamError     (ValueError)    the file is damaged, foreign or of another model
    |- WeightsError       (RuntimeError)  weights are missing or do not fit
    |- DeployError        (RuntimeError)  the host cannot be reached or refuses
    `- UnavailableError   (RuntimeError)  an optional part cannot be had here

`ui` and `cli` catch `PerCoError` and show its text; anything else is a bug.
"""

from __future__ import annotations


class PerCoError(Exception):
    """Base of every error that a user can cause and mend."""


class ConfigError(PerCoError, ValueError):
    """A setting, a name or an argument is wrong."""


class ImageError(PerCoError, ValueError):
    """The picture cannot be read or is outside the limits."""


class BitstreamError(PerCoError, ValueError):
    """The file is damaged, is no PerCoV2 file, or was written with another model."""


class WeightsError(PerCoError, RuntimeError):
    """Weights are missing, incomplete or of another shape or version."""


class DeployError(PerCoError, RuntimeError):
    """The host of the Space cannot be reached, refuses, or does not start it."""


class UnavailableError(PerCoError, RuntimeError):
    """An optional part (a captioner, a metric) cannot be had on this machine."""
