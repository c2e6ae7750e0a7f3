"""Asks this server and a real Triton (2.51.0, from the wheel of nvidia-pytriton) the same, and
compares status, headers and body, byte for byte but for the words that a model says.

    python tests/triton/run.py PROGRAM PACKAGES FOLDER

PACKAGES is the folder that nvidia-pytriton and NumPy are installed in; FOLDER is written to.
Requests are those of `tests/http/kserve/answers.txt`, and `more.txt` beside this file. Where a line
above a request begins with `# Ours` or `# As newer`, this server answers otherwise on purpose, and
that the two differ is what is checked.
"""

import gzip
import http.client
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import time

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from lanes import free_port  # noqa: E402

FOLDER = pathlib.Path(__file__).parent
REQUESTS = [FOLDER.parent / "http/kserve/answers.txt", FOLDER / "more.txt"]
OTHERWISE = ("# Ours", "# As newer", "# The model's own")
TEXT = {"name": "text_input", "datatype": "BYTES", "shape": [1, 1], "data": ["What is 27 + 58?"]}
MAX = {"name": "max_tokens", "datatype": "INT32", "shape": [1, 1], "data": [8]}
# Headers whose values are compared; of these the last is a length, which the words decide. This
# server adds `Date`, as HTTP's standard wants it, and `x-request-id`.
HEADERS = ("Content-Type", "Transfer-Encoding", "Content-Encoding", "Accept-Encoding", "Server",
           "Connection", "Inference-Header-Content-Length")
# The longest that anybody waits for a server to start, on any machine.
PATIENCE = 600


def ask(port, method, path, body, headers):
    """Status, reason, headers and body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.putrequest(method, path, skip_accept_encoding=True)
    for name, value in {"Content-Length": len(body), **headers}.items():
        connection.putheader(name, str(value))
    connection.endheaders(body)
    answer = connection.getresponse()
    told = (answer.status, answer.reason, dict(answer.getheaders()), answer.read())
    connection.close()
    return told


def wait_for(process, port):
    """Until a server is ready."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if process.poll() is not None:
            sys.exit(f"{process.args[0]} ended with {process.returncode}")
        try:
            if ask(port, "GET", "/v2/health/ready", b"", {})[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.2)
    sys.exit(f"{process.args[0]} is not ready after {PATIENCE} s")


def start_ours(program):
    """This server under one name, with Triton's port count."""
    port = free_port()
    command = [program, "serve", "demo", "--port", str(port), "--served-model-name", "ensemble",
               "--max-seqs", "16", "--log", "error"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    wait_for(process, port)
    return process, port


def write_model(config, folder):
    """A repository whose model has the inputs of `config`."""
    model = folder / "models" / "ensemble"
    (model / "1").mkdir(parents=True)
    shutil.copy(FOLDER / "model.py", model / "1")
    lines = ['backend: "python"', f"max_batch_size: {config['max_batch_size']}"]
    for tensor in config["input"]:
        optional = "optional: true" if tensor["optional"] else ""
        lines.append(f'input {{ name: "{tensor["name"]}" data_type: {tensor["data_type"]} '
                     f'dims: {tensor["dims"]} {optional} }}')
    for tensor in config["output"]:
        lines.append(f'output {{ name: "{tensor["name"]}" data_type: {tensor["data_type"]} '
                     f'dims: {tensor["dims"]} }}')
    (model / "config.pbtxt").write_text("\n".join(lines), encoding="utf-8")


def start_theirs(packages, config, folder):
    """A real Triton whose model takes the same."""
    write_model(config, folder)
    # The backend looks for its helper beside itself, where the wheel has none.
    server = packages / "pytriton" / "tritonserver"
    backends = folder / "backends"
    shutil.copytree(server / "backends", backends)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    helper = backends / "python" / "triton_python_backend_stub"
    shutil.copy(server / "python_backend_stubs" / version / helper.name, helper)
    for program in (helper, server / "bin" / "tritonserver"):
        program.chmod(0o755)
    port, grpc_port = free_port(), free_port()
    command = [str(server / "bin" / "tritonserver"), f"--model-repository={folder / 'models'}",
               f"--backend-directory={backends}", f"--http-port={port}",
               f"--grpc-port={grpc_port}", "--allow-metrics=false",
               "--model-control-mode=explicit", "--load-model=ensemble"]
    environment = {**os.environ, "TRITON_MODEL_PACKAGES": str(packages),
                   "LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs")}
    log = open(folder / "triton.log", "w", encoding="utf-8")
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    wait_for(process, port)
    return process, port


def cases():
    """(method, path, body, headers, whether ours is another answer on purpose)"""
    names = {"$TEXT": json.dumps(TEXT, separators=(",", ":")),
             "$MAX": json.dumps(MAX, separators=(",", ":")), "/demo/": "/ensemble/"}
    for file in REQUESTS:
        above = ""
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith("> "):
                for name, text in names.items():
                    line = line.replace(name, text)
                method, path, *body = line[2:].split(" ", 2)
                yield (method, path, "".join(body).encode(), {}, above.startswith(OTHERWISE))
            above = line
    yield from in_other_forms()


def in_other_forms():
    """Binary tensors and compressed bodies, whole and broken."""
    path = "/v2/models/ensemble/infer"
    text = b"What is 27 + 58?"
    text, n = struct.pack("<I", len(text)) + text, struct.pack("<i", 8)
    binary = lambda told, size: {**{name: told[name] for name in ("name", "datatype", "shape")},
                                 "parameters": {"binary_data_size": size}}
    inputs = {"inputs": [binary(TEXT, len(text)), binary(MAX, len(n))]}
    for members in ({}, {"parameters": {"binary_data_output": True}},
                    {"outputs": [{"name": "text_output", "parameters": {"binary_data": True}}]}):
        head = json.dumps({**inputs, **members}).encode()
        length = {"Inference-Header-Content-Length": len(head)}
        yield "POST", path, head + text + n, length, False
        yield "POST", path, head + text + n[:3], length, False
        yield "POST", path, head + text + n + b"x", length, False
        yield "POST", path, head + text, length, False
    # What is no number is 0 to Triton, which then speaks of something else.
    for wrong, differs in ((-1, False), (100_000, False), ("x", True)):
        yield "POST", path, head + text + n, {"Inference-Header-Content-Length": wrong}, differs
    whole = json.dumps({"inputs": [TEXT, MAX]}).encode()
    yield "POST", path, gzip.compress(whole), {"Content-Encoding": "gzip"}, False
    yield "POST", path, whole, {"Content-Encoding": "zstd"}, False
    yield "POST", path, whole, {"Accept-Encoding": "gzip"}, False
    yield "POST", path, whole, {"Accept-Encoding": "deflate"}, False


def words(value):
    """Every text that a model said, wherever an answer has it."""
    if isinstance(value, dict):
        if value.get("name") == "text_output":
            yield from value.get("data", [])
        for name, member in value.items():
            if name == "text_output":
                yield from member if isinstance(member, list) else [member]
            yield from words(member)
    elif isinstance(value, list):
        for member in value:
            yield from words(member)


def comparable(answer):
    """An answer without what the model said."""
    status, reason, headers, body = answer
    # Names are read whatever their case.
    headers = {name.lower(): value for name, value in headers.items()}
    headers = {name: headers[name.lower()] for name in HEADERS if name.lower() in headers}
    if headers.get("Content-Encoding") in ("gzip", "deflate"):
        return status, reason, headers, "compressed"
    n_head = headers.get("Inference-Header-Content-Length")
    if n_head is not None:
        told = json.loads(body[:int(n_head)])
        for output in told["outputs"]:
            output["parameters"]["binary_data_size"] = "some"
        headers["Inference-Header-Content-Length"] = "some"
        return status, reason, headers, json.dumps(told)
    text = body.decode()
    events = [event.removeprefix("data: ") for event in text.split("\n\n") if event]
    for event in events:
        try:
            for said in words(json.loads(event)):
                text = text.replace(json.dumps(said, ensure_ascii=False), '"said"')
        except json.JSONDecodeError:
            pass
    return status, reason, headers, text


def main():
    program, packages, folder = sys.argv[1:]
    folder = pathlib.Path(folder).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    ours, our_port = start_ours(program)
    theirs = None
    n_cases, failed = 0, []
    try:
        config = json.loads(ask(our_port, "GET", "/v2/models/ensemble/config", b"", {})[3])
        theirs, their_port = start_theirs(pathlib.Path(packages).resolve(), config, folder)
        for method, path, body, headers, differs in cases():
            n_cases += 1
            told = [comparable(ask(port, method, path, body, headers))
                    for port in (our_port, their_port)]
            if (told[0] != told[1]) != differs:
                failed.append(path)
                print(f"{method} {path} {body[:300]} {headers}\n  ours   {told[0]}\n"
                      f"  theirs {told[1]}", flush=True)
    finally:
        for process in filter(None, (ours, theirs)):
            process.terminate()
            process.wait()
    print(f"{n_cases} requests, {len(failed)} answered otherwise")
    sys.exit(bool(failed) or n_cases < 230)


if __name__ == "__main__":
    main()
