"""What a method is and what it sees; imports nothing that runs a step."""
