"""What makes one training step, with methods around it."""
