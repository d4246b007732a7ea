"""Trained networks without their dead units: smaller, and the same function."""
