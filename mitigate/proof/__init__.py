"""Proof: attacks on a mitigated model, each beside its control, and the evidence of what held."""
