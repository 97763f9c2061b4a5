"""A run's folder and state, from submission to export."""
