"""Webhook endpoints and deliveries, as clients see them."""
