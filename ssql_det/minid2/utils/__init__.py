"""Utilities of the other sub-packages."""
