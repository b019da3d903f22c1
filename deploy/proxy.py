"""nginx without a container: its folder and its command. The configuration is the containers' own."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from service.cli.terminal import CommandError

NGINX = Path(__file__).resolve().parent / "nginx"
MODULES = Path("/usr/lib/nginx/modules")
CJSON = Path("/usr/share/lua/5.1/cjson/util.lua")
INSTALL = "apt-get install nginx-light libnginx-mod-http-lua lua-cjson"


def missing() -> str | None:
    """What of nginx is not on this machine, with what to do; None if all is there."""
    if program() is None:
        return f"nginx is not installed: {INSTALL}"
    wanted = (MODULES / "ndk_http_module.so", MODULES / "ngx_http_lua_module.so", CJSON)
    absent = [str(path) for path in wanted if not path.exists()]
    return f"nginx lacks {', '.join(absent)}: {INSTALL}" if absent else None


def program() -> str | None:
    """Where nginx is; Debian's folder of servers is not on everybody's path."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


def command(folder: Path, port: int, services: Sequence[int]) -> list[str]:
    """Write what differs from place to place, and say how nginx is started.

    Args:
        folder: nginx's own, made if it is not there.
        port: of this machine that it listens on.
        services: ports of the services' API.

    Raises:
        CommandError: nginx or a module of it is missing.
    """
    if (lacks := missing()) is not None:
        raise CommandError(lacks)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(NGINX / "nginx.conf", folder)
    (folder / "listen.conf").write_text(f"listen 127.0.0.1:{port};\n")
    (folder / "servers.conf").write_text(
        "".join(f"server 127.0.0.1:{own} max_fails=0;\n" for own in services)
    )
    return [str(program()), "-p", f"{folder}/", "-c", str(folder / "nginx.conf"), "-e", "stderr"]
