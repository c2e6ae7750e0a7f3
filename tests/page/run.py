"""The page as people use it: a headless Chromium against the program with the demo model.

    python tests/page/run.py PROGRAM PICTURES

Fails where something is not as it should be, and writes pictures into the folder PICTURES for a
person to look at.
"""

import json
import pathlib
import re
import sys
import time

import axe_playwright_python
from browser import Browser

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from lanes import start  # noqa: E402

AXE = pathlib.Path(axe_playwright_python.__file__).with_name("axe.min.js").read_text()

LIVE = "document.querySelector('#status').dataset.state === 'live'"
N_ANSWERS = "document.querySelectorAll('.answer[aria-busy=false]').length"
LAST = "[...document.querySelectorAll('.answer')].at(-1)"
FOCUS = "document.activeElement.id"


class Server:
    """The program on a port. Use it in a `with`."""

    def __init__(self, program, *arguments, port=0):
        command = [program, "serve", "demo", "--port", str(port), "--log", "warn", *arguments]
        self.process, printed = start(command)
        self.address = "http://" + re.search(r"on http://(\S+)", printed)[1]
        self.port = int(self.address.rsplit(":", 1)[1])

    def stop(self):
        """Ends it as an operator does."""
        self.process.terminate()
        assert self.process.wait(60) == 0, self.process.returncode

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.stop()


def same(what, got, wanted):
    """Says what differs."""
    if got != wanted:
        raise AssertionError(f"{what}: {got!r}, not {wanted!r}")


def holds(what, is_so):
    """Says what does not hold."""
    if not is_so:
        raise AssertionError(f"not so: {what}")


def ask(page, question, n_answers):
    """Asks with the keyboard alone and waits for that many answers in all."""
    page.type(question)
    page.press("Enter")
    page.until("the answer is there", f"{N_ANSWERS} === {n_answers}")


def accessible(page, what):
    """No rule of axe-core's for WCAG 2.2 A and AA is broken; as many as usual were looked at."""
    page.ask(AXE + "; 0")
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    told = page.ask("axe.run(document, {runOnly: " + json.dumps(tags) + "}).then(r => ({"
                    "n: r.passes.length, broken: r.violations.map(v => v.id + ': ' + "
                    "v.nodes.map(n => n.html.slice(0, 200) + ' ' + n.failureSummary)"
                    ".join(' | '))}))")
    holds(f"{what}: {told['n']} rules hold", told["n"] >= 20)
    same(f"{what}: rules that are broken", told["broken"], [])


def conversation(browser, program, pictures):
    """A question with thinking and one without; what both show; the node beside them."""
    with Server(program, "--tp", "2") as server:
        page = browser.page()
        page.open(server.address)
        page.until("the node is live", LIVE)
        same("the focus", page.ask(FOCUS), "question")
        accessible(page, "before anything was asked")
        ask(page, "What is 27 + 58?", 1)
        holds("the answer", "85" in page.ask(f"{LAST}.querySelector('.prose').innerText"))
        same("the thought is folded", page.ask(f"{LAST}.querySelector('.thought').open"), False)
        reasoning = page.ask(f"{LAST}.querySelector('.reasoning').textContent")
        holds(f"the reasoning is told apart: {reasoning!r}", "7+8" in reasoning)
        foot = page.ask(f"{LAST}.querySelector('.foot').textContent")
        took = re.search(r"\d+ tokens · .*tokens/s · first after", foot)
        holds(f"what it took: {foot!r}", took)
        announced = page.ask("document.querySelector('#announce').textContent")
        holds(f"screen readers are told: {announced!r}", "85" in announced)
        page.click(".thought summary")
        same("the thought unfolds", page.ask(f"{LAST}.querySelector('.thought').open"), True)
        page.until("steps are shown",
                   "document.querySelector('#strip').ariaValueText.startsWith('Last ')")
        same("blocks", page.ask("document.querySelectorAll('#blocks svg').length"), 12)
        same("ranks", page.ask("document.querySelectorAll('#ranks .line').length"), 2)
        accessible(page, "after an answer")
        page.picture(pictures / "light.png")
        page.click(".switch input")
        page.ask("document.querySelector('#question').focus()")
        ask(page, "What is 3 + 4?", 2)
        same("nothing was thought", page.ask(f"{LAST}.querySelector('.thought').hidden"), True)
        answer = page.ask(f"{LAST}.querySelector('.prose').innerText")
        holds(f"and yet answered: {answer!r}", answer)
        same("problems", page.problems, [])


def stop(browser, program):
    """An answer that is stopped ends at once, and the server forgets it."""
    with Server(program) as server:
        page = browser.page()
        page.open(server.address)
        page.until("the node is live", LIVE)
        # As from far away: the answer takes a minute to arrive, and is stopped at its beginning.
        page.slow_down(1000)
        page.type("What is 1234 * 5678?")
        page.press("Enter")
        page.until("it has begun", f"{LAST}.querySelector('.foot').textContent !== '…'")
        page.press("Escape")
        page.until("it ends", f"{N_ANSWERS} === 1")
        foot = page.ask(f"{LAST}.querySelector('.foot').textContent")
        holds(f"it says so: {foot!r}", foot.endswith("stopped"))
        page.slow_down(None)
        page.until("the server has let go", "document.querySelector('#queue .value').textContent"
                   ".startsWith('0 of')")
        same("it can be asked again", page.ask("document.querySelector('#send').textContent"),
             "Send")
        same("problems", page.problems, [])


def restart(browser, program):
    """A page that is open while the server is started anew finds back by itself."""
    server = Server(program)
    page = browser.page()
    page.open(server.address)
    page.until("the node is live", LIVE)
    ask(page, "What is 1 + 2?", 1)
    server.stop()
    page.until("it notices", "document.querySelector('#status').dataset.state === 'lost'")
    ask(page, "What is 2 + 2?", 2)
    told = page.ask(f"{LAST}.querySelector('.foot').textContent")
    holds(f"who asks is told: {told!r}", "cannot be reached" in told)
    with Server(program, port=server.port):
        page.until("it is back", LIVE)
        ask(page, "What is 2 + 3?", 3)
        answer = page.ask(f"{LAST}.querySelector('.prose').innerText")
        holds(f"and answers: {answer!r}", answer)
        page.until("the new server's steps are shown", "Number(document.querySelector('#strip')"
                   ".ariaValueMin) === 0 && document.querySelector('#strip').ariaValueMax > 0")
    # The browser itself reports requests that fail; nothing else may.
    strange = [one for one in page.problems if "net::ERR" not in one]
    same("problems", strange, [])


def keyboard(browser, program):
    """Everything is reached and worked with keys, and the focus is seen."""
    with Server(program) as server:
        page = browser.page(still=True)
        page.open(server.address)
        page.until("the node is live", LIVE)
        reached = []
        for _ in range(30):
            page.press("Tab")
            reached.append(page.ask(FOCUS) or page.ask("document.activeElement.tagName"))
            ring = page.ask("(s => s.outlineStyle !== 'none' || s.boxShadow !== 'none')("
                            "getComputedStyle(document.activeElement.matches('[role=switch]') ? "
                            "document.activeElement.nextElementSibling : document.activeElement))")
            holds(f"{reached[-1]} shows its focus", ring or reached[-1] == "BODY"
                  or reached[-1] == "question")
        for wanted in ["thinking", "sampling-button", "send", "strip", "theme", "log"]:
            holds(f"Tab reaches {wanted}: {reached}", wanted in reached)
        page.ask("document.querySelector('#thinking').focus()")
        page.press("Space")
        same("Space turns thinking off", page.ask("document.querySelector('#thinking').checked"),
             False)
        page.ask("document.querySelector('#question').focus()")
        page.type("What is")
        page.press("Enter", shift=True)
        page.type("1 + 1?")
        same("Shift+Enter", page.ask("document.querySelector('#question').value"),
             "What is\n1 + 1?")
        page.press("Enter")
        page.until("the answer is there", f"{N_ANSWERS} === 1")
        page.until("steps are shown",
                   "document.querySelector('#strip').ariaValueText.startsWith('Last ')")
        page.ask("document.querySelector('#strip').focus()")
        page.press("Home")
        first = page.ask("document.querySelector('#strip').ariaValueText")
        holds(f"a step can be read: {first!r}", first.startswith("Step 0: "))
        page.press("ArrowRight")
        same("and the next", page.ask("document.querySelector('#strip').ariaValueText")[:7],
             "Step 1:")
        same("problems", page.problems, [])


def phone(browser, program, pictures):
    """390 points wide: nothing is cut off, both views are reached."""
    with Server(program) as server:
        for dark in [False, True]:
            page = browser.page(390, 844, phone=True, dark=dark)
            page.open(server.address)
            page.until("the node is live", LIVE)
            ask(page, "What is 314 - 587?", 1)
            name = "phone-dark" if dark else "phone"
            page.picture(pictures / f"{name}-chat.png")
            for view in ["chat", "node"]:
                page.click(f"#view-{view}")
                same(f"width of {view}", page.ask("document.documentElement.scrollWidth"), 390)
                wide = page.ask("[...document.querySelectorAll('#log, #composer, #node, .card')]"
                                ".filter(e => e.scrollWidth > e.clientWidth).map(e => e.className)")
                same(f"what of {view} is cut off", wide, [])
                accessible(page, f"{name}, {view}")
                hidden = {"chat": "node", "node": "chat"}[view]
                same("one view at a time",
                     page.ask(f"document.querySelector('#{hidden}').offsetParent"), None)
            page.picture(pictures / f"{name}-node.png")
            same("problems", page.problems, [])


def with_key(browser, program):
    """The page loads, asks for the key, keeps it for the tab, and says when it is wrong."""
    with Server(program, "--api-key", "sesame") as server:
        page = browser.page()
        page.open(server.address)
        page.until("it asks", "document.querySelector('#key-dialog').open")
        accessible(page, "asking for a key")
        page.type("tahini")
        page.press("Enter")
        page.until("it asks again", "document.querySelector('#key-dialog').open && "
                   "document.querySelector('#key-problem').textContent.length > 0")
        page.type("sesame")
        page.press("Enter")
        page.until("the node is live", LIVE)
        ask(page, "What is 27 + 58?", 1)
        holds("the answer", "85" in page.ask(f"{LAST}.querySelector('.prose').innerText"))
        page.open(server.address + "/?again")
        page.until("the key is kept", LIVE)
        same("the key is nowhere but in the tab", page.ask("localStorage.getItem('lnserve-key')"),
             None)
        strange = [one for one in page.problems if "401" not in one]
        same("problems", strange, [])


def dark(browser, program, pictures):
    """The same page at night; a choice of colours is kept."""
    with Server(program) as server:
        page = browser.page(dark=True)
        page.open(server.address)
        page.until("the node is live", LIVE)
        ask(page, "What is 37 * 42?", 1)
        page.until("steps are shown",
                   "document.querySelector('#strip').ariaValueText.startsWith('Last ')")
        accessible(page, "dark")
        page.picture(pictures / "dark.png")
        ground = "getComputedStyle(document.body).backgroundColor"
        night = page.ask(ground)
        page.click("#theme")
        page.open(server.address)
        page.until("light by choice", f"{ground} !== {night!r}")
        same("problems", page.problems, [])


def main():
    program, pictures = sys.argv[1], pathlib.Path(sys.argv[2])
    pictures.mkdir(parents=True, exist_ok=True)
    tests = {
        conversation: [program, pictures],
        stop: [program],
        restart: [program],
        keyboard: [program],
        phone: [program, pictures],
        with_key: [program],
        dark: [program, pictures],
    }
    with Browser() as browser:
        for test, arguments in tests.items():
            began = time.monotonic()
            test(browser, *arguments)
            print(f"ok    {test.__name__}: {time.monotonic() - began:.1f} s", flush=True)
    print(f"pictures are in {pictures}")


if __name__ == "__main__":
    main()
