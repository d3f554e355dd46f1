"""Processes and threads as the application sees them."""
