"""HTTP: one door in, one serving layer, one package per dialect."""
