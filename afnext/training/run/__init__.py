"""What a run keeps and tells: checkpoints, logs, the finished model."""
