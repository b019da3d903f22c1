"""Claims jobs, trains prefixes, publishes them. Knows no HTTP."""
