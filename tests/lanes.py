"""What the scripts of several lanes share."""

import socket
import subprocess
import sys


def start(command, **streams):
    """An lnserve that serves, and what it printed until then; `streams` are as Popen's."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **streams)
    printed = ""
    # The last line of its greeting is how to ask it.
    while "-d '" not in printed:
        line = process.stdout.readline()
        if not line:
            sys.exit(f"{' '.join(map(str, command))} ended early: {printed}")
        printed += line
    return process, printed


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
