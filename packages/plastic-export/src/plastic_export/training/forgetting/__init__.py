"""How far a run moves the model from its base on text that it is not trained on."""
