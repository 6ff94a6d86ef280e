"""Names and manifests as values."""
