"""What daemon and worker say to each other; no I/O."""
