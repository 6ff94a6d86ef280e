"""Measurements, logs, events."""
