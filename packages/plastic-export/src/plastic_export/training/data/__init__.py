"""Training data: which files hold it, its rows in tokens, what is left out and what held out."""
