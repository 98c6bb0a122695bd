"""Measurements that need a quiet machine; `make bench-…` runs them, never a test."""
