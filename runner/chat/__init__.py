"""Text: templates and output parsing."""
