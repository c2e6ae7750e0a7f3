"""What the scripts of several lanes share."""

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
