import pytest
from typer.testing import CliRunner
from wire import Wire

from service.cli.app import app


@pytest.fixture
def wire():
    wire = Wire()
    yield wire
    wire.close()


@pytest.fixture
def command(wire, monkeypatch):
    """Runs a command line against the wire; raises what it raises."""
    for name in ("PREFIX_URL", "PREFIX_API_KEY", "PREFIX_ADMIN_KEY", "PREFIX_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments, key="pfx_test", input=None):  # noqa: A002
        result = CliRunner().invoke(app, ["--url", wire.url, "--api-key", key, *arguments], input=input)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run
