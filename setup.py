"""The pip side of the package; colcon uses CMakeLists.txt."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithMessages(build_py):
    """Puts the .msg files beside the code that reads bags without ROS."""

    def run(self) -> None:
        super().run()
        target = Path(self.build_lib) / "vtseg_ros" / "data" / "msg"
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted(Path(__file__).resolve().parent.glob("msg/*.msg")):
            (target / path.name).write_bytes(path.read_bytes())


setup(cmdclass={"build_py": BuildWithMessages})
