"""Measurements of the engine, the service and the gain of prefixes; nothing here is timed by a test."""
