"""The commands about an output that is there: dial it, restore its source, verify it."""
