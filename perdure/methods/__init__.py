"""One file a method; `perdure.methods.registry` finds them by name."""
