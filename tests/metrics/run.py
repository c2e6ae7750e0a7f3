"""The program's metrics, its dashboard and its alert rules, held against the real Prometheus.

    python tests/metrics/run.py PROGRAM

Needs `prometheus` and `promtool`, as Debian's package `prometheus` has them, and nothing of PyPI.
Asks the demo model some questions at once, lets Prometheus read what that leaves, and sees that
the names keep Prometheus' conventions, that numbers add up to what was asked, that the rules say
what they should, that everything which the dashboard and the rules ask for is there, and that the
log has a line for each request with the same numbers.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from lanes import start  # noqa: E402

FOLDER = pathlib.Path(__file__).parents[2] / "server" / "dashboards"

#: Nothing that comes at all takes longer, on any machine.
PATIENCE_S = 120

#: Questions that are asked, each with at most so many tokens of answer.
N_QUESTIONS, N_TOKENS_MAX = 24, 40

#: The trace that every question says it is part of.
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"

#: What only shows where something went wrong or was asked for, and is not in a first reading.
NOT_ALWAYS_THERE = {"lnserve_http_errors_total"}


def start_demo(program, log):
    """The server's process, its address, and that of its metrics."""
    command = [program, "serve", "demo", "--tp", "2", "--port", "0", "--metrics-port", "0",
               "--log", "info", "--log-format", "json"]
    process, printed = start(command, stderr=log)
    serves = re.search(r"serves demo on http://(\S+)", printed)[1]
    metrics = re.search(r"etrics are on http://([^/\s]+)", printed)[1]
    return process, serves, metrics


def get(address):
    """The text at an address."""
    with urllib.request.urlopen(f"http://{address}", timeout=PATIENCE_S) as reply:
        return reply.read().decode()


def ask(serves):
    """Asks a question; what it used."""
    body = {"messages": [{"role": "user", "content": "What is 27 + 58?"}],
            "max_tokens": N_TOKENS_MAX}
    request = urllib.request.Request(f"http://{serves}/v1/chat/completions",
                                     json.dumps(body).encode(),
                                     {"content-type": "application/json",
                                      "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"})
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
        return json.loads(reply.read())["usage"]


def ask_responses(serves, read, is_stream):
    """Asks for a response: its thinking is counted too, whole or streamed."""
    body = {"input": "What is 27 + 58?", "max_output_tokens": N_TOKENS_MAX, "stream": is_stream}
    before = total(samples(read()), "lnserve_thinking_tokens_total")
    request = urllib.request.Request(f"http://{serves}/v1/responses", json.dumps(body).encode(),
                                     {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
        told = reply.read().decode()
    if is_stream:
        last = [line for line in told.split("\n") if line.startswith("data: ")][-1]
        told = json.dumps(json.loads(last.removeprefix("data: "))["response"])
    usage = json.loads(told)["usage"]["output_tokens_details"]["reasoning_tokens"]
    if usage == 0:
        sys.exit(f"a response without thinking: {told}")
    after = total(samples(read()), "lnserve_thinking_tokens_total")
    equal(f"thinking of a response, streamed: {is_stream}", after - before, usage)


def samples(text):
    """Name and labels to value."""
    lines = [line for line in text.split("\n") if line and not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def total(read, name, wanted=""):
    """The sum of a metric's samples whose labels hold `wanted`."""
    same = re.compile(rf"{re.escape(name)}(\{{.*\}})?$")
    return sum(value for key, value in read.items() if same.match(key) and wanted in key)


def equal(what, got, wanted):
    """Says what differs."""
    if abs(got - wanted) > 1e-6:
        sys.exit(f"{what}: {got}, not {wanted}")
    print(f"ok    {what}: {got:g}")


def adds_up(read, used):
    """What the metrics say is what the answers said, and parts are as much as their whole."""
    n_prompt = sum(one["prompt_tokens"] for one in used)
    n_answer = sum(one["completion_tokens"] for one in used)
    n_thinking = sum(one["completion_tokens_details"]["reasoning_tokens"] for one in used)
    n_cached = sum(one["prompt_tokens_details"]["cached_tokens"] for one in used)
    for name, wanted in [
        ("lnserve_generations_total", len(used)),
        ("lnserve_prompt_tokens_total", n_prompt),
        ("lnserve_generated_tokens_total", n_answer),
        ("lnserve_thinking_tokens_total", n_thinking),
        ("lnserve_first_token_seconds_count", len(used)),
        ("lnserve_token_gap_seconds_count", n_answer - len(used)),
        ("lnserve_generation_seconds_count", len(used)),
        ("lnserve_queue_seconds_count", len(used)),
        ("vllm:generation_tokens_total", n_answer),
        ("nv_inference_request_success", len(used)),
        ("lnserve_cached_tokens_total", n_cached),
        ("lnserve_running_requests", 0),
        ("lnserve_waiting_requests", 0),
        # Without a preemption every prompt token is found or computed, once.
        ("lnserve_prefix_tokens_total", n_prompt),
        # Each answer's first token comes with its prompt's last chunk, each other with a row.
        ("lnserve_step_tokens_total", n_prompt - n_cached + n_answer - len(used)),
    ]:
        equal(name, total(read, name), wanted)
    for kind in ["used", "cached", "free"]:
        total(read, "lnserve_kv_group_pages", f'state="{kind}"')
    parts = sum(total(read, "lnserve_kv_group_pages", f'state="{kind}"')
                for kind in ["used", "cached", "free"])
    equal("pages by state", parts, total(read, "lnserve_kv_pages"))
    equal("steps by time", total(read, "lnserve_step_duration_seconds_count"),
          total(read, "lnserve_steps_total"))
    # The same sum, kept in whole nanoseconds here and there.
    equal("time by step", total(read, "lnserve_step_duration_seconds_sum"),
          total(read, "lnserve_step_seconds_total"))
    worked = []
    for rank in ["0", "1"]:
        times = [total(read, f"lnserve_rank_{what}_seconds_total", f'rank="{rank}"')
                 for what in ["wait", "exchange", "busy"]]
        if not 0 < times[0] <= times[1] <= times[2]:
            sys.exit(f"rank {rank}: a wait is part of an exchange, that of work: {times}")
        worked.append(times[2] - times[0])
    # Of sums over steps the difference is at most the sum of differences, and no difference is
    # more than what was worked.
    skew = total(read, "lnserve_rank_skew_seconds_total")
    if not abs(worked[0] - worked[1]) - 1e-6 <= skew <= sum(worked):
        sys.exit(f"two ranks worked {worked} and differed by {skew}")


def logged(log, used):
    """The log is JSON, and has one line for each request that says what came of it."""
    log.seek(0)
    lines = [json.loads(line) for line in log]
    answered = [line for line in lines if line["fields"]["message"] == "answered"
                and line["span"]["route"] == "/v1/chat/completions"]
    equal("lines of requests", len(answered), len(used))
    equal("requests that are told apart", len({one["span"]["id"] for one in answered}), len(used))
    for field, wanted in [("n_prompt", sum(one["prompt_tokens"] for one in used)),
                          ("n_generated", sum(one["completion_tokens"] for one in used)),
                          ("n_cached", sum(one["prompt_tokens_details"]["cached_tokens"]
                                           for one in used))]:
        equal(f"{field} in the log", sum(one["fields"][field] for one in answered), wanted)
    for one in answered:
        fields = one["fields"]
        times = [fields["queued_ms"], fields["ttft_ms"], fields["total_ms"]]
        if fields["outcome"] not in ["stop", "length"] or fields["status"] != 200:
            sys.exit(f"how it ended: {one}")
        if one["span"]["trace_id"] != TRACE:
            sys.exit(f"which trace: {one}")
        if not 0 <= fields["first_step"] <= fields["last_step"]:
            sys.exit(f"which steps: {one}")
        if times != sorted(times) or one["span"]["route"] != "/v1/chat/completions":
            sys.exit(f"when and where: {one}")
    print("ok    each line says how it ended, and when")


def lint(text):
    """promtool finds nothing to say of our own names; others' names are theirs to choose."""
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, text=True,
                             capture_output=True, check=False)
    ours = [line for line in (checked.stdout + checked.stderr).split("\n") if "lnserve_" in line]
    if ours or "error while linting" in checked.stderr:
        sys.exit("\n".join(["promtool check metrics:", *ours, checked.stderr]))
    helped = set(re.findall(r"^# HELP (\S+) \S", text, re.M))
    typed = set(re.findall(r"^# TYPE (\S+) (?:counter|gauge|histogram)$", text, re.M))
    if helped != typed:
        sys.exit(f"without help or type: {helped ^ typed}")
    print(f"ok    {len(typed)} metrics have help and type, ours keep the conventions")


def rules():
    """The rules are well formed, and fire where they should."""
    for command in [["check", "rules", "alerts.yml"], ["test", "rules", "alerts.test.yml"]]:
        checked = subprocess.run(["promtool", *command], cwd=FOLDER, text=True,
                                 capture_output=True, check=False)
        if checked.returncode:
            sys.exit(f"promtool {' '.join(command)}:\n{checked.stdout}{checked.stderr}")
        print(f"ok    promtool {' '.join(command)}")


def expressions():
    """What the dashboard and the rules ask for: where it stands and PromQL."""
    board = json.loads((FOLDER / "grafana.json").read_text())
    for panel in board["panels"]:
        for target in panel["targets"]:
            expression = target["expr"].replace("$__rate_interval", "1m")
            yield panel["title"], expression.replace("$instance", ".+")
    for name, text in re.findall(r"alert: (\w+)\n +expr: (?:>-\n)?((?:.+\n)+?) +(?:for|labels):",
                                 (FOLDER / "alerts.yml").read_text()):
        yield name, " ".join(text.split())


class Prometheus:
    """A Prometheus of its own that reads the program. Use it in a `with`."""

    def __init__(self, target):
        self.folder = tempfile.TemporaryDirectory(prefix="lnserve-metrics-")
        config = {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                  "rule_files": [str(FOLDER / "alerts.yml")],
                  "scrape_configs": [{"job_name": "lnserve",
                                      "static_configs": [{"targets": [target]}]}]}
        path = pathlib.Path(self.folder.name, "prometheus.yml")
        # JSON is YAML.
        path.write_text(json.dumps(config))
        self.log = open(pathlib.Path(self.folder.name, "log"), "w+", encoding="utf-8")
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={path}", "--web.listen-address=127.0.0.1:0",
             f"--storage.tsdb.path={self.folder.name}/data"],
            stdout=self.log, stderr=self.log)
        self.address = self._address()

    def _address(self):
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end and self.process.poll() is None:
            self.log.seek(0)
            said = self.log.read()
            # The address that it was given has port 0; the one that it got has another.
            found = re.search(r'address="?(127\.0\.0\.1:[1-9]\d*)', said)
            if found and "ready to receive web requests" in said:
                return found[1]
            time.sleep(0.1)
        self.log.seek(0)
        sys.exit(f"Prometheus did not start:\n{self.log.read()}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        self.log.close()
        self.folder.cleanup()

    def query(self, expression):
        """The samples of an instant query."""
        query = urllib.parse.urlencode({"query": expression})
        try:
            told = json.loads(get(f"{self.address}/api/v1/query?{query}"))
        except urllib.error.HTTPError as error:
            sys.exit(f"{expression}: {error.read().decode()}")
        return told["data"]["result"]

    def until(self, what, expression):
        """Waits until a query has samples."""
        end = time.monotonic() + PATIENCE_S
        while not self.query(expression):
            if time.monotonic() > end:
                sys.exit(f"never so: {what}: {expression}")
            time.sleep(0.2)


def asked_for_is_there(read, target):
    """Prometheus takes the metrics, every expression and every rule, and finds each name."""
    known = {re.split(r"[{ ]", name)[0] for name in read} | {"up"} | NOT_ALWAYS_THERE
    with Prometheus(target) as prometheus:
        prometheus.until("it has read the program", 'up{job="lnserve"} == 1')
        # A rate is between two readings.
        prometheus.until("it has read it again", "count_over_time(lnserve_steps_total[1m]) >= 3")
        n_asked = 0
        for where, expression in expressions():
            n_asked += 1
            names = set(re.findall(r"\b(?:lnserve_\w+|up\b)", expression))
            if not names or names - known:
                sys.exit(f"{where} asks for {names - known or 'nothing'}: {expression}")
            told = prometheus.query(expression)
            # What compares with a bound has samples only where something is wrong.
            is_alert = re.search(r" (?:==|>|<) ", expression)
            if not told and not is_alert and not names & NOT_ALWAYS_THERE:
                sys.exit(f"{where} shows nothing: {expression}")
        told = json.loads(get(f"{prometheus.address}/api/v1/rules"))
        loaded = [rule for group in told["data"]["groups"] for rule in group["rules"]]
        if len(loaded) != 8 or n_asked < 30:
            sys.exit(f"{len(loaded)} rules and {n_asked} expressions were looked at")
        prometheus.until("it scraped without a complaint",
                         'scrape_samples_scraped{job="lnserve"} > 100')
    print(f"ok    Prometheus has what {n_asked} expressions ask for, and {len(loaded)} rules")


def main():
    rules()
    log = tempfile.TemporaryFile("w+", encoding="utf-8")
    server, serves, metrics = start_demo(sys.argv[1], log)
    try:
        with ThreadPoolExecutor(8) as threads:
            used = list(threads.map(lambda _: ask(serves), range(N_QUESTIONS)))
        # Nothing runs any more: both readings say the same of the engine.
        text = get(f"{metrics}/metrics")
        lint(text)
        adds_up(samples(text), used)
        asked_for_is_there(samples(text), metrics)
        for is_stream in [False, True]:
            ask_responses(serves, lambda: get(f"{metrics}/metrics"), is_stream)
    finally:
        server.terminate()
    if server.wait() != 0:
        sys.exit(f"the server ended with {server.returncode}")
    logged(log, used)


if __name__ == "__main__":
    main()
