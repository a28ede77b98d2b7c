"""The dial on a finished run: its adapters at fewer bytes, from what the run stores alone."""
