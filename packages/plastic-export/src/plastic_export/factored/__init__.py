"""The model file that is copied beside a factored checkpoint; nothing else belongs here."""
