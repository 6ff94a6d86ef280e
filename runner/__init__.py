"""Runner: pulls, stores and serves language models on one's own machine."""
