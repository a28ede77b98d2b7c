"""What processes gain that work together."""
