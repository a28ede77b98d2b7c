"""What ``plastic evaluate`` prints: rows, whole figures, scores of tasks."""
