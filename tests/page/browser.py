"""A headless Chromium, driven over its DevTools protocol: pages, keys, pictures, what went wrong.

The protocol is documented at chromedevtools.github.io/devtools-protocol. A driver between it and
the scripts would be larger than both.
"""

import base64
import json
import pathlib
import shutil
import subprocess
import tempfile
import time

from websockets.sync.client import connect

#: Nothing that a page is waited for takes longer, on any machine.
PATIENCE_S = 120

KEYS = {
    "Enter": ("Enter", 13, "\r"),
    "Tab": ("Tab", 9, ""),
    "Escape": ("Escape", 27, ""),
    "Space": ("Space", 32, " "),
    "ArrowLeft": ("ArrowLeft", 37, ""),
    "ArrowRight": ("ArrowRight", 39, ""),
    "Home": ("Home", 36, ""),
}


class Browser:
    """A browser of its own, with nothing of any user's. Use it in a `with`."""

    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="lnserve-page-")
        program = shutil.which("chromium") or "chromium"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                 "--hide-scrollbars", "--no-first-run", "--disable-background-networking",
                 "--remote-debugging-port=0", f"--user-data-dir={self.folder}", "about:blank"]
        self.process = subprocess.Popen([program, *flags], stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
        self.line = connect(self._address(), max_size=None, open_timeout=PATIENCE_S,
                            ping_interval=None)
        self.n_calls = 0
        self.pages = {}

    def _address(self):
        written = pathlib.Path(self.folder, "DevToolsActivePort")
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end and self.process.poll() is None:
            lines = written.read_text().split("\n") if written.exists() else []
            if len(lines) >= 2:
                return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
            time.sleep(0.05)
        raise RuntimeError("Chromium did not start")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.line.close()
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def call(self, method, session=None, **parameters):
        """What the browser answers."""
        self.n_calls += 1
        number = self.n_calls
        message = {"id": number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        self.line.send(json.dumps(message))
        while True:
            told = json.loads(self.line.recv(timeout=PATIENCE_S))
            if told.get("id") == number:
                if "error" in told:
                    raise RuntimeError(f"{method}: {told['error']['message']}")
                return told["result"]
            page = self.pages.get(told.get("sessionId"))
            if page and "method" in told:
                page.hear(told["method"], told["params"])

    def page(self, width=1440, height=900, **looks):
        """A page of a context of its own: nothing is stored in it yet."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        return Page(self, attached["sessionId"], (width, height), looks)


class Page:
    """A page in it. `looks`: `dark` or `still` (no motion), `phone`."""

    def __init__(self, browser, session, size, looks):
        self.browser, self.session = browser, session
        self.problems = []
        self.replace = None
        browser.pages[session] = self
        for domain in ["Page", "Runtime", "Log", "Network"]:
            self.call(f"{domain}.enable")
        width, height = size
        phone = looks.get("phone", False)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=2 if phone else 1, mobile=phone)
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)
        features = [("prefers-color-scheme", "dark" if looks.get("dark") else "light"),
                    ("prefers-reduced-motion", "reduce" if looks.get("still") else "no-preference")]
        self.call("Emulation.setEmulatedMedia",
                  features=[{"name": name, "value": value} for name, value in features])

    def call(self, method, **parameters):
        """What the browser answers for this page."""
        return self.browser.call(method, session=self.session, **parameters)

    def hear(self, method, told):
        """Keeps what a developer would see in red."""
        if method == "Runtime.exceptionThrown":
            details = told["exceptionDetails"]
            thrown = details.get("exception", {}).get("description")
            self.problems.append(thrown or details["text"])
        elif method == "Runtime.consoleAPICalled" and told["type"] == "error":
            self.problems.append(str([part.get("value") for part in told["args"]]))
        elif method == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.problems.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")

    def open(self, address):
        """Opens an address."""
        self.call("Page.navigate", url=address)
        self.until("the page is there", "document.readyState === 'complete'")

    def ask(self, script):
        """The value of an expression in the page; promises are waited for."""
        told = self.call("Runtime.evaluate", expression=script, returnByValue=True,
                         awaitPromise=True)
        if "exceptionDetails" in told:
            raise RuntimeError(f"{script}: {told['exceptionDetails']}")
        return told["result"].get("value")

    def until(self, what, script):
        """Waits until an expression is true."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if self.ask(f"(() => {{ try {{ return !!({script}); }} catch {{ return false; }} }})()"):
                return
            time.sleep(0.05)
        shown = self.ask("document.body.innerText")
        raise TimeoutError(f"never so: {what}\n{shown}\n{self.problems}")

    def press(self, key, shift=False):
        """Presses a key and lets it go."""
        code, number, text = KEYS[key]
        name = {"Space": " "}.get(key, key)
        common = {"key": name, "code": code, "windowsVirtualKeyCode": number,
                  "modifiers": 8 if shift else 0}
        kind = "keyDown" if text else "rawKeyDown"
        self.call("Input.dispatchKeyEvent", type=kind, text=text, **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text):
        """Types into what has the focus."""
        self.call("Input.insertText", text=text)

    def click(self, selector):
        """Clicks the middle of an element, with the mouse."""
        at = self.ask(f"(() => {{ const e = document.querySelector({selector!r}); "
                      "e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect(); "
                      "return [r.x + r.width / 2, r.y + r.height / 2]; })()")
        for kind in ["mouseMoved", "mousePressed", "mouseReleased"]:
            self.call("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], button="left",
                      clickCount=1)

    def slow_down(self, n_bytes_per_s):
        """What arrives at the page arrives no faster; `None` lifts that."""
        self.call("Network.emulateNetworkConditions", offline=False, latency=0,
                  uploadThroughput=-1, downloadThroughput=n_bytes_per_s or -1)

    def picture(self, path):
        """Writes what is seen as a PNG."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        pathlib.Path(path).write_bytes(base64.b64decode(data))
