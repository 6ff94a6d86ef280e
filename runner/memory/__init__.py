"""How many bytes a model needs, and where they fit."""
