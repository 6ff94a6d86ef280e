"""Devices: values, probers, pinning."""
