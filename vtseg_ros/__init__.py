"""Video semantic segmentation for ROS 2: VTSeg, its streaming engine, training and nodes."""

from pkgutil import extend_path

# The generated messages (vtseg_ros.msg) live in the install space; Python run from the source
# tree finds them beside these modules.
__path__ = extend_path(__path__, __name__)

__version__ = "0.1.0"
