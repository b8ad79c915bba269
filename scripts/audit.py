# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Audit the dependencies: pinned versions, hashes of the files, and known vulnerabilities if pip-audit has access.

`python scripts/audit.py` checks; `--update` adds the hashes of the files that pip would download on this
platform to requirements/hashes.lock. Exit code 1: something differs. Checks that could not be run are listed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "requirements"
HASHES = FOLDER / "hashes.lock"
UNHASHED = {"torch": "its CPU and CUDA builds share a version"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    """Return the version that constraints.txt allows, by package."""
    found = {}
    for line in (FOLDER / "constraints.txt").read_text().splitlines():
        match = re.match(r"([A-Za-z0-9._-]+)==([^\s;]+)", line)
        if match:
            found[normal(match[1])] = match[2]
        elif line.strip() and not line.startswith("#"):
            raise SystemExit(f"audit: not an exact pin: {line}")
    return found


def installed_pins() -> dict[str, str]:
    """Return the pins of the installed packages, except those without a hash."""
    here = {normal(distribution.metadata["Name"]) for distribution in importlib.metadata.distributions()}
    return {name: version for name, version in pins().items() if name in here and name not in UNHASHED}


def check_installed() -> list[str]:
    """Return the packages whose installed version differs from the pin."""
    wanted, wrong = pins(), []
    for distribution in importlib.metadata.distributions():
        name = normal(distribution.metadata["Name"])
        if name in wanted and distribution.version != wanted[name]:
            wrong.append(f"{name} is {distribution.version}, pinned {wanted[name]}")
    return sorted(set(wrong))


def resolved() -> dict[str, str] | None:
    """Return the SHA-256 of the files that pip would download here, by `name==version`; None without access."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        wanted = Path(folder) / "pins.txt"
        wanted.write_text("\n".join(f"{name}=={version}" for name, version in installed_pins().items()))
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--dry-run",
            "--ignore-installed",
            "--no-deps",
        ]
        done = subprocess.run(
            [*command, "--report", str(report), "-r", str(wanted)], capture_output=True, text=True
        )
        if done.returncode:
            print(done.stderr.strip()[-400:], file=sys.stderr)
            return None
        items = json.loads(report.read_text())["install"]
    return {
        f"{normal(i['metadata']['name'])}=={i['metadata']['version']}": i["download_info"]["archive_info"][
            "hashes"
        ]["sha256"]
        for i in items
    }


def recorded() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for line in HASHES.read_text().splitlines() if HASHES.exists() else ():
        if line and not line.startswith("#"):
            name, *hashes = line.split()
            found[name] = {text.removeprefix("sha256:") for text in hashes}
    return found


def check_hashes(fetched: dict[str, str]) -> list[str]:
    """Return the files that pip would download and whose hash is not in the lock file."""
    known = recorded()
    return [
        f"{name}: sha256 {digest} is not in {HASHES.name}"
        for name, digest in sorted(fetched.items())
        if digest not in known.get(name, ())
    ]


def update(fetched: dict[str, str]) -> None:
    known = {name: hashes for name, hashes in recorded().items() if name in fetched}
    for name, digest in fetched.items():
        known.setdefault(name, set()).add(digest)
    lines = ["# Written by `python scripts/audit.py --update`: files seen on the platforms that it ran on."]
    lines += [
        " ".join([name, *(f"sha256:{h}" for h in sorted(hashes))]) for name, hashes in sorted(known.items())
    ]
    HASHES.write_text("\n".join(lines) + "\n")


def known_vulnerabilities() -> tuple[list[str], str]:
    """Return the vulnerabilities that pip-audit found, and the reason if it could not run."""
    done = subprocess.run(
        [sys.executable, "-m", "pip_audit", "--local", "--format", "json"], capture_output=True, text=True
    )
    try:
        found = json.loads(done.stdout)["dependencies"]
    except ValueError:
        return [], done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no answer"
    return [f"{d['name']} {d['version']}: {v['id']}" for d in found for v in d.get("vulns", ())], ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/audit.py", description=__doc__)
    parser.add_argument("--update", action="store_true")
    args = parser.parse_args()
    problems = check_installed()
    print(f"versions: {len(pins())} pins, {len(problems)} installed in another version")
    fetched = resolved()
    if fetched is None:
        print("hashes: NOT CHECKED, pip could not fetch the pinned files here")
    elif args.update:
        update(fetched)
        print(f"hashes: {len(fetched)} files, written to {HASHES}")
    else:
        wrong = check_hashes(fetched)
        print(f"hashes: {len(fetched)} files, {len(wrong)} not on record")
        problems += wrong
    found, why = known_vulnerabilities()
    print(f"vulnerabilities: NOT CHECKED, {why}" if why else f"vulnerabilities: {len(found)} known")
    for problem in problems + found:
        print(f"  {problem}")
    return 1 if problems or found else 0


if __name__ == "__main__":
    sys.exit(main())
