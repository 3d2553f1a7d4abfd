"""What several methods share: buffers, distances, margins, cached states."""
