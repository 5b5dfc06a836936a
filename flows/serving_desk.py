"""The desk's server: Streamlit on this machine's own address, which asks nothing of the network and tells nobody."""

import importlib.util
import os
import socket
import sys
from contextlib import closing
from pathlib import Path

from flows.params import Params
from flows.stage import say

ROOT = Path(".")
ADDRESS, PORT = "127.0.0.1", 8501
OPTIONS = {
    "global.developmentMode": "false",  # wherever Streamlit lies
    "server.address": ADDRESS,
    "server.enableCORS": "true",
    "server.enableXsrfProtection": "true",
    "server.enableStaticServing": "false",
    "server.enableAgentApi": "false",
    "server.fileWatcherType": "none",
    "server.maxUploadSize": "1",
    "browser.serverAddress": ADDRESS,
    "browser.gatherUsageStats": "false",
    "client.toolbarMode": "minimal",
    "client.showErrorDetails": "none",
}
HOSTS = (ADDRESS, "localhost")  # under which names it answers: no page elsewhere reads it under one of its own


class DeskError(ValueError):
    """The desk cannot be shown."""


def make_maps(values: Params, method: str) -> None:
    """Make the maps of all versions that have sentence vectors, where they are not there; says which it makes.

    Args:
        values: the parameters.
        method: `pca` or `umap`.

    Raises:
        ArtifactError: `umap` is asked for and not installed, or vectors cannot be read.
    """
    from tasks.browsing.places import find_places, find_vectors, has_vectors, make_places

    for version in filter(lambda version: has_vectors(find_vectors(ROOT, version)), values.versions):
        found = find_places(ROOT, version)
        if found is None or found.method != method:
            say(f"making the map of {version}")
            make_places(ROOT, version, method)


def serve(port: int, *, browser: bool) -> None:
    """Become the desk's server.

    Args:
        port: of this machine's own address.
        browser: open the page.

    Raises:
        DeskError: Streamlit is not installed, or the port is taken.
    """
    if importlib.util.find_spec("streamlit") is None:
        raise DeskError("the desk is not installed; `pip install 'tamis[desk]'` brings it")
    with closing(socket.socket()) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((ADDRESS, port))
        except OSError as error:
            raise DeskError(f"port {port} is taken ({error.strerror}); name another one, with --port") from error
    app = Path(__file__).with_name("desk") / "app.py"
    options = OPTIONS | {"server.port": str(port), "server.headless": str(not browser).lower()}
    given = [*options.items(), *(("server.allowedHosts", host) for host in HOSTS)]
    words = [word for name, value in given for word in (f"--{name}", value)]
    say(f"the desk is at http://{ADDRESS}:{port}; Ctrl-C ends it")
    os.execv(sys.executable, [sys.executable, "-m", "streamlit", "run", str(app), *words])
