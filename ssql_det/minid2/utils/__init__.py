"""Tools that the other sub-packages need."""
