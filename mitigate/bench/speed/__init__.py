"""What audits and unlearning cost, as ratios to the computations that they cannot do without or that others do."""
