"""Package URLs by purl-spec's own examples, os-release(5), and metadata in lines and JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.errors import InvalidImage
from imgfs.packages.metadata import apk_packages, deb_packages, lines_of, npm_package, python_package
from imgfs.packages.package import LONGEST, Distribution, Package, parse_os_release, purl_of

STATUS = b"""\
Package: curl
Status: install ok installed
Architecture: amd64
Source: curl-src (1.2)
Version: 7.88.1-10+deb12u5
Description: a tool
 Package: not-this
 .

Package: gone
Status: deinstall ok config-files
Version: 1

Package: distroless
Version: 2:1~rc1
"""


@pytest.mark.parametrize(
    ("package", "distribution", "expected"),
    [
        (  # PURL-TYPES.rst, examples of each type
            Package("deb", "Curl", "7.50.3-1", architecture="i386"),
            Distribution("debian", "8"),
            "pkg:deb/debian/curl@7.50.3-1?arch=i386&distro=debian-8",
        ),
        (
            Package("rpm", "curl", "7.50.3-1.fc25", architecture="i386", epoch="1"),
            Distribution("fedora", "25"),
            "pkg:rpm/fedora/curl@7.50.3-1.fc25?arch=i386&distro=fedora-25&epoch=1",
        ),
        (
            Package("apk", "curl", "7.83.0-r0", architecture="x86"),
            Distribution("alpine"),
            "pkg:apk/alpine/curl@7.83.0-r0?arch=x86&distro=alpine",
        ),
        (
            Package("pypi", "Django_Package", "1.11.1.dev1"),
            Distribution("x"),
            "pkg:pypi/django-package@1.11.1.dev1",
        ),
        (
            Package("npm", "@angular/animation", "12.3.1"),
            Distribution(),
            "pkg:npm/%40angular/animation@12.3.1",
        ),
        (Package("deb", "g++", "4:1+b~2"), Distribution(), "pkg:deb/g%2B%2B@4:1%2Bb~2"),
    ],
)
def test_a_purl_is_that_of_its_type(package: Package, distribution: Distribution, expected: str) -> None:
    assert purl_of(package, distribution) == expected


def test_dpkg_status_has_what_is_installed() -> None:
    assert list(deb_packages([STATUS])) == [
        Package("deb", "curl", "7.88.1-10+deb12u5", architecture="amd64", source="curl-src"),
        Package("deb", "distroless", "2:1~rc1"),
    ]


def test_apk_has_letters() -> None:
    body = b"C:Q1\nP:musl\nV:1.2.4-r2\nA:x86_64\nL:MIT\no:musl\nF:lib\nR:ld\n\nP:libcrypto3\nV:3\no:openssl\n"
    assert list(apk_packages([body])) == [
        Package("apk", "musl", "1.2.4-r2", architecture="x86_64", license="MIT"),
        Package("apk", "libcrypto3", "3", source="openssl"),
    ]


def test_python_metadata_ends_at_its_description() -> None:
    body = b"Metadata-Version: 2.1\r\nName: a_b\r\nVersion: 1.0\r\nLicense: MIT\r\n\r\nName: other\r\n"
    assert python_package(body) == Package("pypi", "a_b", "1.0", license="MIT")
    with pytest.raises(InvalidImage, match="without a Name"):
        python_package(b"\xff\x00: x")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            '{"name": "@a/b", "version": "1.2.3", "license": {"type": "MIT"}}',
            Package("npm", "@a/b", "1.2.3", license="MIT"),
        ),
        ('{"name": "x", "version": "1", "license": ["MIT"]}', Package("npm", "x", "1")),
        ('{"name": "x", "type": "module"}', None),
        ('{"name": 7, "version": "1"}', None),
        ('{"name": "\\ud800", "version": "1"}', Package("npm", "?", "1")),
    ],
)
def test_a_package_json(body: str, expected: Package | None) -> None:
    assert npm_package(body.encode()) == expected


@pytest.mark.parametrize("body", [b"[]", b"{", b"\xff", b"[" * 100_000, b'{"a": ' + b"9" * 10_000 + b"}"])
def test_what_is_no_package_json_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidImage, match="JSON"):
        npm_package(body)


def test_os_release_is_quoted_or_not() -> None:
    body = b"# x\nID=Debian\nVERSION_ID=\"12\"\nPRETTY_NAME='Debian 12'\nBAD=$(rm)\nID_LIKE\n"
    assert parse_os_release(body) == Distribution("debian", "12", "Debian 12")
    assert parse_os_release(b"\xff\xfe\0") == Distribution()


def test_a_line_without_an_end_is_cut() -> None:
    pieces = [b"Package: a\nVersion: "] + [b"9" * 50_000] * 20 + [b"\nPackage: b\n"]
    lines = list(lines_of(pieces))
    assert [len(line) for line in lines] == [10, 64 << 10, 10]
    [package] = deb_packages(pieces)
    assert (package.name, len(package.version)) == ("a", LONGEST)


@given(st.lists(st.binary(max_size=50), max_size=8))
def test_lines_do_not_depend_on_how_they_come(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    expected = [line.rstrip(b"\r") for line in whole.split(b"\n")]
    assert list(lines_of(pieces)) == (
        expected if expected[-1] or whole[-1:] not in (b"\n", b"") else expected[:-1]
    )


@given(st.binary(max_size=200), st.sampled_from([deb_packages, apk_packages]))
def test_any_bytes_are_packages_that_can_be_written(body: bytes, read: type) -> None:
    for package in read([b"Package: a\nP:a\n" + body]):
        json.dumps(package._asdict(), default=str).encode()
        assert purl_of(package, Distribution()).isascii()


@given(
    st.recursive(
        st.none() | st.text(max_size=5) | st.integers(),
        lambda more: (
            st.lists(more, max_size=3)
            | st.dictionaries(st.sampled_from(["name", "version", "license", "type"]), more, max_size=4)
        ),
        max_leaves=8,
    )
)
def test_any_json_is_read_or_refused(value: object) -> None:
    try:
        found = npm_package(json.dumps(value).encode())
    except InvalidImage:
        assert not isinstance(value, dict)
    else:
        assert found is None or found.name
