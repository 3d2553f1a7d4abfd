"""A regression test for weights."""
