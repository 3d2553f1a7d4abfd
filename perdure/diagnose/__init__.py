"""What kind of loss a tuned model suffered on a task."""
