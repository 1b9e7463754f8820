"""Lesions and their quantities: size classes, SUV, TLA, Dmax, and the lesion table."""
