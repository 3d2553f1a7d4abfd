"""What each command does, one thin function each; `perdure.cli` declares their options.

Everything heavy is imported inside the functions, so that `perdure --help` answers at once.
"""
