"""Which models are loaded where, and who may use them; pure."""
