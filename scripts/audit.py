# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The dependency audit: versions as pinned, files with the hashes on record, known vulnerabilities where pip-audit can ask.

`python scripts/audit.py` checks; `--update` writes requirements/hashes.lock anew from what pip would fetch on this
platform (other platforms' hashes stay). Exit code 1: something differs. Every check that could not be done is named.
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
    """Package -> the one version that constraints.txt allows."""
    found = {}
    for line in (FOLDER / "constraints.txt").read_text().splitlines():
        match = re.match(r"([A-Za-z0-9._-]+)==([^\s;]+)", line)
        if match:
            found[normal(match[1])] = match[2]
        elif line.strip() and not line.startswith("#"):
            raise SystemExit(f"audit: not an exact pin: {line}")
    return found


def installed_pins() -> dict[str, str]:
    """The pins of what is installed here, but for those without a hash."""
    here = {normal(distribution.metadata["Name"]) for distribution in importlib.metadata.distributions()}
    return {name: version for name, version in pins().items() if name in here and name not in UNHASHED}


def check_installed() -> list[str]:
    """Packages installed in another version than pinned."""
    wanted, wrong = pins(), []
    for distribution in importlib.metadata.distributions():
        name = normal(distribution.metadata["Name"])
        if name in wanted and distribution.version != wanted[name]:
            wrong.append(f"{name} is {distribution.version}, pinned {wanted[name]}")
    return sorted(set(wrong))


def resolved() -> dict[str, str] | None:
    """`name==version` -> sha256 of the file that pip would fetch here; None when it cannot be asked."""
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
    """Files that pip would fetch and whose hash is not on record."""
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
    """What pip-audit found, and why it could not be asked."""
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
