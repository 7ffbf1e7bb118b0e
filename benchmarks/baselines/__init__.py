"""The gateways people write in an afternoon: small, ordinary and honest."""
