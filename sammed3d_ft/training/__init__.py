"""Parts of a training run besides model and data: optimiser groups, checkpoints, logs, run lock."""
