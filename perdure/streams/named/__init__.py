"""Named streams: one file each."""
