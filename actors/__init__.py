"""Supervised trio actors of the daemon."""
