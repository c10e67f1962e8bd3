"""Webhooks: endpoints, what is sent to them, and how."""
