"""What the Hub gets: the model card of an output or a run, and the upload."""
