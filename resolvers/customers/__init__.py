"""Customers, whom meters are billed to, and their sessions."""
