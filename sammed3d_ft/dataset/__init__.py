"""Cases: the manifest, its builders, splits, and the check before training."""
