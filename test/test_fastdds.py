# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Profiles and domains of DDS."""

from __future__ import annotations

import socket
from pathlib import Path
from xml.etree import ElementTree

import pytest

from vtseg_ros.errors import ConfigError
from vtseg_ros.nodes.dds import PROFILES, VARIABLES, free_domain, profile_environment

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_have_room_for_an_image(profile):
    named = profile_environment(profile, ROOT)
    assert named.keys() == set(VARIABLES) and len(set(named.values())) == 1
    text = Path(named[VARIABLES[0]]).read_text()
    root = ElementTree.fromstring(text)
    space = {"d": root.tag.partition("}")[0].strip("{")}
    assert int(root.find(".//d:segment_size", space).text) >= 1920 * 1080 * 3
    addresses = [node.text for node in root.iterfind(".//d:interfaceWhiteList/d:address", space)]
    assert addresses == (["127.0.0.1"] if profile == "loopback" else [])


def test_other_profiles(tmp_path):
    own = tmp_path / "own.xml"
    own.write_text("<dds/>")
    assert profile_environment("", ROOT) == {}
    assert set(profile_environment(str(own), ROOT).values()) == {str(own)}
    with pytest.raises(ConfigError, match="expected default, loopback or an XML file"):
        profile_environment("defualt", ROOT)


def test_a_domain_in_use_is_not_free():
    free = free_domain()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 7410 + 250 * free))
        assert free_domain() != free
