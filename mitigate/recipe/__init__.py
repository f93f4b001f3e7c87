"""Recipes: YAML and `key=value` overrides, typed and checked."""
