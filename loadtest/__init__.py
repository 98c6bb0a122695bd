"""Load tests against a running endpoint, and capacity planning. It knows the endpoint's contract alone."""
