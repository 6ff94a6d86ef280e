"""The native model endpoints of Docker Model Runner: `/models…`."""
