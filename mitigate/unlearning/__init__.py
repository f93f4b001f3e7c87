"""Remove the memorized tokens: masked-loss training of an adapter, anchored on everything else."""
