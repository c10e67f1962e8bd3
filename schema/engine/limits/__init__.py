"""What one request may come to, and what all of a process may take together."""
