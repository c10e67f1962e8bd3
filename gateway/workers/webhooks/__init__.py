"""Delivering webhooks: what is due is claimed, sent, and what came of it is written."""
