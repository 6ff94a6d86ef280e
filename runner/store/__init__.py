"""The disk side of models."""
