"""What a plan and a compression cost, in parts: measurements, and the rows they make."""
