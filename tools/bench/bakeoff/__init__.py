"""The bake-off: who takes part, one kind of method per module, and how a row is made."""
