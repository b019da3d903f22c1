"""What is measured: each module is run as a process of its own and spoken to by JSON lines."""
