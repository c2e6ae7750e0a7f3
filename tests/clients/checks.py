"""Named checks: one line each, with the place in a protocol's documents that says what is right."""

import argparse
import sys
import traceback


class Checks:
    """Counts checks and prints one line for each.

    `subject` begins every line. `done` fails the script if a check failed or if fewer ran than
    `n_least`: a loop over nothing is no evidence.
    """

    def __init__(self, subject, n_least):
        self.subject = subject
        self.n_least = n_least
        self.names = set()
        self.failures = []

    def equal(self, name, got, wanted, source):
        """`got` is `wanted`, as `source` says."""
        self._report(name, got == wanted, f"got {got!r}, wanted {wanted!r}", source)

    def true(self, name, holds, shown, source):
        """`holds`; `shown` is what is printed where it does not."""
        self._report(name, bool(holds), f"not so: {shown!r}", source)

    def raises(self, name, kind, words, source, call):
        """`call()` raises `kind` with all of `words` in its message. Returns the exception."""
        try:
            returned = call()
        except kind as error:
            missing = [word for word in words if word not in str(error)]
            self._report(name, not missing, f"{missing!r} not in {str(error)!r}", source)
            return error
        except Exception as error:  # pylint: disable=broad-except
            self._report(name, False, f"raised {type(error).__name__}: {error}", source)
            return error
        self._report(name, False, f"raised nothing, returned {returned!r}", source)
        return None

    def _report(self, name, passes, problem, source):
        assert name not in self.names, f"two checks are called {name}"
        self.names.add(name)
        if passes:
            print(f"ok    {self.subject}: {name}", flush=True)
            return
        self.failures.append(name)
        print(f"FAIL  {self.subject}: {name}\n      {problem}\n      {source}", flush=True)

    def done(self):
        """Ends the script."""
        n = len(self.names)
        print(f"{self.subject}: {n} checks, {len(self.failures)} failed", flush=True)
        if n < self.n_least:
            print(f"{self.subject}: at least {self.n_least} were to run", flush=True)
        sys.exit(bool(self.failures) or n < self.n_least)


def run(subject, n_least, sections):
    """A script's main function: calls each of `sections` with the checks and the addresses.

    A section that breaks off counts as a failed check, and the others still run.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--http", required=True, help="host:port of the HTTP server")
    parser.add_argument("--grpc", required=True, help="host:port of the gRPC server")
    parser.add_argument("--program", required=True, help="lnserve itself")
    addresses = parser.parse_args()
    checks = Checks(subject, n_least)
    for section in sections:
        try:
            section(checks, addresses)
        except Exception:  # pylint: disable=broad-except
            traceback.print_exc()
            checks.true(f"{section.__name__} runs to its end", False, "see above", "")
    checks.done()
