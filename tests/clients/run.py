"""Starts the program with the demo model on free ports and runs every script of this folder
against it, each in a process of its own.

    python tests/clients/run.py PROGRAM [SCRIPT…]

A script is a file that is none of `HELPERS`; SCRIPT is its name without `.py`.
"""

import pathlib
import re
import subprocess
import sys
import time

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from lanes import start  # noqa: E402

FOLDER = pathlib.Path(__file__).parent
HELPERS = {"run", "checks", "paced_server", "triton_model"}


def start_demo(program):
    """The server's process, its addresses and the program."""
    command = [program, "serve", "demo", "--port", "0", "--grpc-port", "0"]
    command += ["--log", "warn"]
    process, printed = start(command)
    http = re.search(r"on http://(\S+)", printed)[1]
    grpc = re.search(r"on grpc://(\S+)", printed)[1]
    return process, ["--http", http, "--grpc", grpc, "--program", program]


def main():
    program, *wanted = sys.argv[1:]
    names = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in HELPERS)
    if unknown := [name for name in wanted if name not in names]:
        sys.exit(f"no script {', '.join(unknown)}; there are: {', '.join(names)}")
    server, addresses = start_demo(program)
    failed = []
    try:
        for name in wanted or names:
            began = time.monotonic()
            script = [sys.executable, str(FOLDER / f"{name}.py"), *addresses]
            if subprocess.run(script, check=False).returncode:
                failed.append(name)
            print(f"{name}: {time.monotonic() - began:.1f} s", flush=True)
            if server.poll() is not None:
                sys.exit(f"the server ended during {name}, with {server.returncode}")
    finally:
        server.terminate()
    if server.wait() != 0:
        failed.append("the server's end")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
