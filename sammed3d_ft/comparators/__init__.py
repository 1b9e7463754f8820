"""Methods for comparison that need no training: threshold rules, and 2D SAM slice by slice."""
