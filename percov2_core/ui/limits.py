"""What the page accepts."""

from __future__ import annotations

MAX_UPLOAD_BYTES = 20 * 2**20
MAX_UPLOAD_PIXELS = 25 * 10**6
COMFORTABLE_SIDE_PX = 1024  # above it, a resize is offered
MAX_WORKING_SIDE_PX = 2048
MAX_WORKING_PIXELS = MAX_WORKING_SIDE_PX**2
KEEP_FILES_S = 1800
SWEEP_FILES_S = 300
KEEP_RUNS = 12  # pictures a visitor can come back to
