"""What watches a training run: checkpoints, progress, curves, traces."""
