"""`python -m service`: one serving process."""

import os


def main() -> None:
    """Serve until SIGTERM."""
    # Threads that wait for one another by spinning starve everything else on the machine, the worker first.
    # Read once, when torch is loaded; so the rest is imported after it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from service.start import run  # noqa: PLC0415

    run()


if __name__ == "__main__":
    main()
