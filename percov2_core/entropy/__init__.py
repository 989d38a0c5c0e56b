"""Tokens <-> bytes: schedules, masked image model, its fixed-point twin, range coder."""
