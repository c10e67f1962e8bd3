"""The process that listens: its sockets, its protocol, its end."""
