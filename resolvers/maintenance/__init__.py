"""What operators run over whole databases: verify, copy, repairs."""
