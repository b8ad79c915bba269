# Source me: `. scripts/env.sh` gives a shell with vtseg, segmenter, trainer, evaluator and the messages.
if [ -n "${BASH_SOURCE:-}" ]; then
  _vtseg_here=${BASH_SOURCE[0]}
elif [ -n "${ZSH_VERSION:-}" ]; then
  _vtseg_here=${(%):-%x}
else
  _vtseg_here=$PWD/scripts/env.sh
fi
_vtseg_root=$(cd "$(dirname "$_vtseg_here")/.." && pwd)
if [ ! -f "$_vtseg_root/install/.vtseg_build" ]; then
  echo "env: not set up yet. Type: scripts/setup.sh" >&2
  unset _vtseg_here _vtseg_root
  return 1
fi
_vtseg_prefix=$_vtseg_root/install/vtseg_ros
_vtseg_site=
for _vtseg_here in "$_vtseg_prefix"/lib/python3*/site-packages "$_vtseg_prefix"/local/lib/python3*/dist-packages; do
  if [ -d "$_vtseg_here" ]; then _vtseg_site=$_vtseg_here; fi
done
case ":${PATH}:" in
  *":$_vtseg_root/.venv/bin:"*) ;;
  *)
    # The environment is the prefix of the PyPI wheels; beside a sourced ROS 2 it only adds Python packages.
    if [ -d "$_vtseg_root/.venv/share/rclpy" ] || [ -d "$_vtseg_root/.venv/share/ament_index" ]; then
      export AMENT_PREFIX_PATH="$_vtseg_prefix:$_vtseg_root/.venv${AMENT_PREFIX_PATH:+:$AMENT_PREFIX_PATH}"
      export LD_LIBRARY_PATH="$_vtseg_prefix/lib:$_vtseg_root/.venv/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
    else
      export AMENT_PREFIX_PATH="$_vtseg_prefix${AMENT_PREFIX_PATH:+:$AMENT_PREFIX_PATH}"
      export LD_LIBRARY_PATH="$_vtseg_prefix/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
    fi
    # The source tree comes first, so that a change of Python needs no build; the messages lie in the install space.
    export PYTHONPATH="$_vtseg_root:$_vtseg_site${PYTHONPATH:+:$PYTHONPATH}"
    export PATH="$_vtseg_root/.venv/bin:$_vtseg_prefix/bin:$_vtseg_prefix/lib/vtseg_ros:$PATH"
    ;;
esac
unset _vtseg_here _vtseg_root _vtseg_prefix _vtseg_site
