"""A recipe, run stage by stage."""
