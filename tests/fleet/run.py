"""Two replicas behind routers as users have them: each is drained and started again under load, and
no request is lost. And what is in `server/deploy`, held against the linters of those who read it.

    python tests/fleet/run.py PROGRAM FOLDER

Needs `haproxy`, as Debian's package has it, and what `requirements.txt` names. FOLDER is for what
the processes log.
"""

import http.client
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import manifests

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from lanes import free_port  # noqa: E402

#: Nothing that comes at all takes longer, on any machine.
PATIENCE_S = 120

#: Seconds of notice: more than two checks of either router.
NOTICE_S = 4

#: Clients that ask without a pause, half of them for streams.
N_CLIENTS = 8

#: Answers that each replica must have given in each phase, so that there was load.
N_ANSWERS_MIN = 10


def get(address):
    """The text at an address."""
    with urllib.request.urlopen(f"http://{address}", timeout=PATIENCE_S) as reply:
        return reply.read().decode()


def wait_for(what, is_true):
    """Waits for something that comes."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_true():
        if time.monotonic() > deadline:
            sys.exit(f"it never came to this: {what}")
        time.sleep(0.05)


class Replica:
    """An lnserve on a port of its own, which it keeps when it is started again."""

    def __init__(self, program, name, folder):
        self.port = free_port()
        self.command = [program, "serve", "demo", "--port", str(self.port), "--threads", "1",
                        "--drain-notice", str(NOTICE_S), "--drain-timeout", str(PATIENCE_S)]
        self.log = open(folder / f"{name}.log", "w", encoding="utf-8")
        self.name = name
        self.process = None

    def start(self):
        """Starts it, and comes back once it is ready."""
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log)
        wait_for(f"{self.name} is ready", self.is_ready)

    def is_ready(self):
        """Whether it would take requests."""
        if self.process.poll() is not None:
            sys.exit(f"{self.name} ended with {self.process.returncode}: see {self.log.name}")
        try:
            get(f"127.0.0.1:{self.port}/v2/health/ready")
            return True
        except OSError:
            return False

    def n_answered(self):
        """Generations that it ended well since it was started."""
        text = get(f"127.0.0.1:{self.port}/metrics")
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.split("\n")
                   if line.startswith("nv_inference_request_success"))

    def drain(self):
        """Asks it to leave; it must do so by itself, having finished what it had."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(PATIENCE_S)
        if status != 0:
            sys.exit(f"{self.name} left with {status}: see {self.log.name}")

    def kill(self):
        """Ends it at once."""
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Load:
    """Clients that ask one question after another, and look at every answer."""

    def __init__(self, port):
        self.port = port
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        self.n_answers = 0
        self.lost = []
        self.threads = [threading.Thread(target=self.ask_on, args=(idx,), daemon=True)
                        for idx in range(N_CLIENTS)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        for thread in self.threads:
            thread.join(PATIENCE_S)

    def ask_on(self, idx):
        """One client's life."""
        while not self.stopped.is_set():
            try:
                problem = ask(self.port, is_stream=idx % 2 == 0)
            except (OSError, ValueError, http.client.HTTPException) as error:
                problem = f"{type(error).__name__}: {error}"
            with self.lock:
                if problem:
                    self.lost.append(problem)
                else:
                    self.n_answers += 1


def ask(port, is_stream, n_tokens=24):
    """Asks a question; what is wrong with the answer, if anything is."""
    body = {"model": "demo", "messages": [{"role": "user", "content": "What is 27 + 58?"}],
            "max_tokens": n_tokens, "ignore_eos": True, "temperature": 0, "stream": is_stream}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions",
                                     json.dumps(body).encode(),
                                     {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
        text = reply.read().decode()
    if is_stream:
        events = re.findall(r"^data: (.*)$", text, re.M)
        if events[-1:] != ["[DONE]"]:
            return f"a stream that does not end: {text[-200:]!r}"
        reasons = [choice["finish_reason"] for event in events[:-1]
                   for choice in json.loads(event)["choices"] if choice.get("finish_reason")]
        return None if reasons == ["length"] else f"a stream that ended by {reasons}"
    answer = json.loads(text)
    n_got = answer["usage"]["completion_tokens"]
    return None if n_got == n_tokens else f"{n_got} tokens, not {n_tokens}"


def haproxy(replicas, log):
    """HAProxy, as `server/deploy/haproxy.cfg` sets it up."""
    port = free_port()
    one, two = (f"127.0.0.1:{replica.port}" for replica in replicas)
    environment = {**os.environ, "PORT": str(port), "REPLICA_1": one, "REPLICA_2": two}
    command = ["haproxy", "-db", "-f", manifests.FOLDER / "haproxy.cfg"]
    return port, subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def vllm_router(replicas, log):
    """The router of the vLLM project, which reads /health and asks OpenAI's routes."""
    port = free_port()
    workers = [f"http://127.0.0.1:{replica.port}" for replica in replicas]
    command = [pathlib.Path(sys.executable).with_name("vllm-router"), "--port", str(port),
               "--prometheus-port", str(free_port()), "--policy", "round_robin",
               "--health-check-interval-secs", "1", "--health-failure-threshold", "1",
               "--health-success-threshold", "1", "--worker-urls", *workers]
    return port, subprocess.Popen(command, stdout=log, stderr=log)


def answers(port):
    """Whether the router has somebody to send a request to."""
    try:
        return ask(port, is_stream=False, n_tokens=1) is None
    except (OSError, http.client.HTTPException):
        return False


def nothing_is_lost(name, router, replicas, folder):
    """Drains each replica under load, starts it again, and waits until it has its share."""
    with open(folder / f"{name}.log", "w", encoding="utf-8") as log:
        port, process = router(replicas, log)
    try:
        wait_for(f"{name} answers", lambda: answers(port))
        with Load(port) as load:
            for replica in replicas:
                other = next(one for one in replicas if one is not replica)
                wait_for(f"{replica.name} has answered",
                         lambda: replica.n_answered() >= N_ANSWERS_MIN)
                replica.drain()
                before = other.n_answered()
                wait_for(f"{other.name} carries on",
                         lambda: other.n_answered() >= before + N_ANSWERS_MIN)
                replica.start()
                wait_for(f"{replica.name} has its share again",
                         lambda: replica.n_answered() >= N_ANSWERS_MIN)
        if load.lost:
            sys.exit(f"{name}: {len(load.lost)} requests were lost: {load.lost[:5]}")
        print(f"ok    {name}: two drains under load, {load.n_answers} answers, none lost")
    finally:
        process.kill()
        process.wait()


def a_kill_is_noticed(replicas, folder):
    """A replica that does not drain loses what it had: the check above can fail."""
    with open(folder / "killed.log", "w", encoding="utf-8") as log:
        port, process = haproxy(replicas, log)
    try:
        wait_for("the router answers", lambda: answers(port))
        with Load(port) as load:
            wait_for("there is load", lambda: load.n_answers >= N_ANSWERS_MIN)
            for _ in range(10):
                if load.lost:
                    break
                replicas[0].kill()
                replicas[0].start()
                before = replicas[0].n_answered()
                wait_for("it has its share", lambda: replicas[0].n_answered() > before)
        if not load.lost:
            sys.exit("replicas were killed ten times under load, and nobody missed an answer")
        print(f"ok    killed instead of drained: {len(load.lost)} requests were lost")
    finally:
        process.kill()
        process.wait()


def main():
    """Everything."""
    program, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    manifests.check(program, pathlib.Path(sys.executable).parent)
    replicas = [Replica(program, f"replica-{number}", folder) for number in [1, 2]]
    try:
        for replica in replicas:
            replica.start()
        for path in manifests.probes():
            get(f"127.0.0.1:{replicas[0].port}{path}")
        print(f"ok    probes: {', '.join(manifests.probes())}")
        nothing_is_lost("haproxy", haproxy, replicas, folder)
        nothing_is_lost("vllm-router", vllm_router, replicas, folder)
        a_kill_is_noticed(replicas, folder)
    finally:
        for replica in replicas:
            replica.kill()


if __name__ == "__main__":
    main()
