"""The command `runner`: a lazy command tree, thin over the control API."""
