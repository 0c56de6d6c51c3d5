"""A run on several processes."""
