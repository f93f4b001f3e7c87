"""`mitigate bench ablation`."""
