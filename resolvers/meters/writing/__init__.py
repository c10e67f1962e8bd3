"""The one writer of meters: its queues, its groups, its transactions."""
