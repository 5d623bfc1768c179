"""The gate under each HTTP library."""
