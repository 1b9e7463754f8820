"""What a training run consists of beside its model and data: optimiser groups, checkpoints, tracking."""
