"""A recipe: its sections, reading and checking it."""
