"""What a gateway does that no request asks for."""
