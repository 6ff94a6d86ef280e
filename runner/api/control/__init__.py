"""Our own control API: status, models, packaging, lifecycle."""
