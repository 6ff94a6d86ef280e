"""Values that several packages speak about."""
