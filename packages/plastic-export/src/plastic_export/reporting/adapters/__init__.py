"""What the commands that change adapters print."""
