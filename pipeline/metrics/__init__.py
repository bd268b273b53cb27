"""Scores: one confusion count for pixels, one matching for objects, one bootstrap over groups."""
