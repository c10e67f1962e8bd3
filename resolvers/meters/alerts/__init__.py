"""Alerts: making, changing, deleting and listing them, and those of workspaces that each gateway knows."""
