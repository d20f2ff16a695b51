"""Training that knows no image and no model: updates, averages, checkpoints, the log."""
