#!/usr/bin/env python3
"""Compares ccod with what else an agent's knowledge could be kept in: Chroma, LanceDB, the old tool's store.

usage: run.py [--items N] [--queries N] [--rounds N] [--seed N] [--only NAME]... [--skip-node] [--spinning]
              [--ccod PATH] [--json FILE] [--cache DIR]

This file makes an environment with the pinned packages, outside the checkout, and starts compare.py in it, which
explains the rest. NAME is ours, chroma, lancedb, old-tool or onnx. Needs Python 3.11 or newer, as numpy does, and for
the old tool's store node and npm; whatever cannot be installed is reported as "not run".
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
REQUIREMENTS = os.path.join(HERE, "requirements.txt")
PACKAGE = os.path.join(HERE, "package.json")


def cache_directory():
    """`--cache DIR`, or beside what cargo keeps."""
    if "--cache" in sys.argv[:-1]:
        return os.path.abspath(sys.argv[sys.argv.index("--cache") + 1])
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(cache, "ccod", "peers")


def fingerprint(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read() + sys.version.encode()).hexdigest()[:12]


def python_environment(cache):
    """The interpreter of the environment, and what could not be installed: {package: reason}."""
    place = os.path.join(cache, "python-" + fingerprint(REQUIREMENTS))
    python, done = os.path.join(place, "bin", "python"), os.path.join(place, "installed.json")
    if os.path.exists(done):
        with open(done) as file:
            return python, json.load(file)
    print(f"installing Python packages into {place}", file=sys.stderr, flush=True)
    shutil.rmtree(place, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    missing = {}
    if subprocess.run([*pip, "--requirement", REQUIREMENTS]).returncode != 0:
        # One that cannot be installed must not take the others with it.
        with open(REQUIREMENTS) as file:
            packages = [line.strip() for line in file if line.strip() and not line.startswith("#")]
        for package in packages:
            result = subprocess.run([*pip, package], stderr=subprocess.PIPE, text=True)
            if result.returncode != 0:
                missing[package.split("==")[0]] = last_line(result.stderr)
    if not missing:  # Otherwise the next run tries again.
        with open(done, "w") as file:
            json.dump(missing, file)
    return python, missing


def node_environment(cache):
    """The directory with `node_modules`, or the reason why there is none."""
    place = os.path.join(cache, "node-" + fingerprint(PACKAGE))
    if os.path.exists(os.path.join(place, "installed")):
        return place, None
    for program in ["node", "npm"]:
        if not shutil.which(program):
            return None, f"{program} is not installed"
    print(f"installing the old tool's store into {place}", file=sys.stderr, flush=True)
    os.makedirs(place, exist_ok=True)
    shutil.copy(PACKAGE, place)
    command = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"]
    result = subprocess.run(command, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if result.returncode != 0:
        return None, f"npm install: {last_line(result.stderr)}"
    open(os.path.join(place, "installed"), "w").close()
    return place, None


def last_line(text):
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def main():
    cache = cache_directory()
    os.makedirs(cache, exist_ok=True)
    python, missing = python_environment(cache)
    node, reason = (None, "left out with --skip-node") if "--skip-node" in sys.argv else node_environment(cache)
    known = {"cache": cache, "missing": missing, "node": node, "node_missing": reason}
    environment = dict(os.environ, CCOD_PEERS=json.dumps(known))
    os.execve(python, [python, os.path.join(HERE, "compare.py"), *sys.argv[1:]], environment)


if __name__ == "__main__":
    if "-h" in sys.argv or "--help" in sys.argv:
        print(__doc__)
    else:
        main()
