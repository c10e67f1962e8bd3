"""Meters as clients see them: reading them, and a file for each way to change them."""
