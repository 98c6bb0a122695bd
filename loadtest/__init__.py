"""Load tests of a running endpoint, and capacity planning; it knows the endpoint by its contract."""
