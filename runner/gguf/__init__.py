"""GGUF headers read from untrusted bytes."""
