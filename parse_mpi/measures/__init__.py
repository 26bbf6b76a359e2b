"""Numbers about agents: NumPy in, numbers out."""
