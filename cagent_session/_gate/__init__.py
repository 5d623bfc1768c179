"""The decision which requests are gateway-bound, and what they get. It knows no HTTP library."""
