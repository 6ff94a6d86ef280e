"""Tokens: continuous batching inside the worker."""
