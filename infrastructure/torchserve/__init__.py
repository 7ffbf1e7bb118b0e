"""TorchServe 0.12: its inference and management APIs, its keys, its failures in the domain's words."""
