"""The outside world: HTTP, the environment, the process and the command line. No rule of the domain."""
