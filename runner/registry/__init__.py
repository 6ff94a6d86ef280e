"""The network side of models: the one door out, registries and hubs, what a transfer still lacks."""
