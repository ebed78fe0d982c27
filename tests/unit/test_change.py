"""Documents of a new image: `--change` instructions, history, DiffIDs, media types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.errors import InvalidImage, UsageError
from imgfs.oci.change import (
    apply_changes,
    as_oci,
    extend_config,
    extend_manifest,
    layer_type,
    parse_change,
    truncate,
)
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.image import (
    DOCKER_CONFIG,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_MANIFEST,
    check_layers,
    parse_config,
    parse_document,
)

WHEN = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
DIFF_IDS = [Digest.of(b"flat %d" % number) for number in range(4)]
OCI_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
DOCKER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
SHELL = ["/bin/sh", "-c"]


def changed(config: Mapping[str, Any], *texts: str) -> dict[str, Any]:
    return apply_changes(config, [parse_change(text) for text in texts])


def complaint(text: str, config: Mapping[str, Any] | None = None) -> str:
    """What is said of a change, read and, given a config, applied."""
    with pytest.raises(UsageError) as caught:
        apply_changes(config or {}, [parse_change(text)])
    return str(caught.value)


def dump(fields: object) -> bytes:
    return json.dumps(fields).encode()


# --- instructions


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ('CMD ["sh", "-c", "echo $HOME"]', {"Cmd": ["sh", "-c", "echo $HOME"]}),
        ("CMD echo 'it is' $HOME", {"Cmd": [*SHELL, "echo 'it is' $HOME"]}),
        ("CMD=/bin/bash", {"Cmd": [*SHELL, "/bin/bash"]}),
        ("cmd [ -f /x ] && y", {"Cmd": [*SHELL, "[ -f /x ] && y"]}),
        ("CMD []", {}),
        ('ENTRYPOINT ["/init"]', {"Entrypoint": ["/init"]}),
        ("ENTRYPOINT exec top -b", {"Entrypoint": [*SHELL, "exec top -b"]}),
        ("ENV A=1", {"Env": ["A=1"]}),
        ("ENV A='two words' B=\"a \\\"b\\\"\" C=x\\ y", {"Env": ["A=two words", 'B=a "b"', "C=x y"]}),
        ("ENV A= B=2", {"Env": ["A=", "B=2"]}),
        ("ENV A the  rest = here", {"Env": ["A=the  rest = here"]}),
        ("ENV A=b=c", {"Env": ["A=b=c"]}),
        ("EXPOSE 80", {"ExposedPorts": {"80/tcp": {}}}),
        ("EXPOSE 53/UDP 80-81/tcp", {"ExposedPorts": {"53/udp": {}, "80/tcp": {}, "81/tcp": {}}}),
        ("EXPOSE 1-2/sctp", {"ExposedPorts": {"1/sctp": {}, "2/sctp": {}}}),
        ("LABEL a=1 'b c'=\"d e\" f=g\\ h", {"Labels": {"a": "1", "b c": "d e", "f": "g h"}}),
        ("LABEL description a text", {"Labels": {"description": "a text"}}),
        ("USER 1000:www", {"User": "1000:www"}),
        ("VOLUME /a /b", {"Volumes": {"/a": {}, "/b": {}}}),
        ('VOLUME ["/a b", "/c"]', {"Volumes": {"/a b": {}, "/c": {}}}),
        ("WORKDIR app", {"WorkingDir": "/app"}),
        ("WORKDIR //a/./b/../c/", {"WorkingDir": "/a/c"}),
        ("WORKDIR with a space", {"WorkingDir": "/with a space"}),
        ("STOPSIGNAL SIGRTMIN+3", {"StopSignal": "SIGRTMIN+3"}),
        ("STOPSIGNAL quit", {"StopSignal": "quit"}),
        ("STOPSIGNAL 9", {"StopSignal": "9"}),
        ("ONBUILD RUN make", {"OnBuild": ["RUN make"]}),
        ("HEALTHCHECK NONE", {"Healthcheck": {"Test": ["NONE"]}}),
        ("HEALTHCHECK CMD curl x || exit 1", {"Healthcheck": {"Test": ["CMD-SHELL", "curl x || exit 1"]}}),
        (
            'HEALTHCHECK --interval=1m30s --timeout=1.5s --start-period=100ms --retries=3 CMD ["a", "b"]',
            {
                "Healthcheck": {
                    "Test": ["CMD", "a", "b"],
                    "Interval": 90_000_000_000,
                    "Timeout": 1_500_000_000,
                    "StartPeriod": 100_000_000,
                    "Retries": 3,
                }
            },
        ),
        (
            "HEALTHCHECK --start-interval=1h CMD x",
            {"Healthcheck": {"Test": ["CMD-SHELL", "x"], "StartInterval": 36 * 10**11}},
        ),
    ],
)  # fmt: skip
def test_what_an_instruction_sets(text: str, config: dict[str, Any]) -> None:
    assert changed({}, text) == config


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("FROM x", "the instructions are CMD, ENTRYPOINT, ENV, "),
        ("RUN make", "the instructions are "),
        ("", "the instructions are "),
        ("=x", "the instructions are "),
        ("CMD", "CMD needs an argument"),
        ("env ", "ENV needs an argument"),
        ("CMD a\nENV b=c", "one instruction at a time, on one line"),
        ("CMD [1, 2]", "the words of a JSON array must be strings"),
        ('CMD ["\\ud800"]', "not UTF-8"),
        ("USER \udcff", "not UTF-8"),
        ("ENV A", "'A' is not NAME=VALUE"),
        ("ENV A=1 B", "'B' is not NAME=VALUE"),
        ("ENV =1", "a name must not be empty"),
        ("ENV A='open", "a quote is not closed"),
        ('LABEL "a=b', "a quote is not closed"),
        ("LABEL a=b\\", "a quote is not closed, or a backslash ends the line"),
        ("EXPOSE http", "'http' is not a port"),
        ("EXPOSE 0", "'0' is not a port"),
        ("EXPOSE 65536", "'65536' is not a port"),
        ("EXPOSE 9-8", "'9-8' is not a port"),
        ("EXPOSE 80/ip", "'80/ip' is not a port"),
        ("USER a b", "takes one word, not 'a b'"),
        ('USER ""', "takes one word, not ''"),
        ('VOLUME ["", "/a"]', "a volume needs a path"),
        ("VOLUME []", "a volume needs a path"),
        ("STOPSIGNAL SIGNOTHING", "'SIGNOTHING' is not a signal"),
        ("STOPSIGNAL 65", "'65' is not a signal"),
        ("STOPSIGNAL TERM+1", "'TERM+1' is not a signal"),
        ("ONBUILD ONBUILD RUN x", "ONBUILD is not allowed as an ONBUILD trigger"),
        ("ONBUILD from x", "FROM is not allowed"),
        ("HEALTHCHECK NONE at all", "HEALTHCHECK takes NONE, or"),
        ("HEALTHCHECK curl", "HEALTHCHECK takes NONE, or"),
        ("HEALTHCHECK CMD", "HEALTHCHECK takes NONE, or"),
        ("HEALTHCHECK --interval=1 CMD x", "'1' is not a time"),
        ("HEALTHCHECK --interval= CMD x", "'' is not a time"),
        ("HEALTHCHECK --timeout=1us CMD x", "less than a millisecond"),
        ("HEALTHCHECK --timeout=9999999h CMD x", "too long"),
        ("HEALTHCHECK --retries=x CMD x", "--retries=x is none of --retries=N"),
        ("HEALTHCHECK --colour=x CMD x", "--colour=x is none of"),
        ("LABEL a=${b", "a variable is $NAME, ${NAME}"),
        ("LABEL a=${b:?c}", "a variable is $NAME, ${NAME}"),
        ("EXPOSE $PORT", "'' is not a port"),
    ],
)  # fmt: skip
def test_what_is_no_instruction_is_refused_in_words(text: str, reason: str) -> None:
    said = complaint(text)
    assert said.startswith("change ")
    assert reason in said


def test_only_what_hangs_on_the_image_is_judged_with_it() -> None:
    change = parse_change("EXPOSE $PORT")
    assert apply_changes({"Env": ["PORT=80"]}, [change])["ExposedPorts"] == {"80/tcp": {}}
    assert "not a port" in complaint("EXPOSE $PORT", {"Env": ["PORT=x"]})


def test_a_variable_is_replaced_where_a_dockerfile_replaces_it() -> None:
    base = {"Env": ["PATH=/bin", "HOME=/root", "EMPTY="]}

    def value(text: str) -> str:
        labels: dict[str, str] = changed(base, f"LABEL x={text}")["Labels"]
        return labels["x"]

    assert value("/opt:$PATH") == "/opt:/bin"
    assert value("${PATH}x") == "/binx"
    assert value('"a $HOME"') == "a /root"
    assert value("'a $HOME'") == "a $HOME"
    assert value("\\$HOME") == "$HOME"
    assert value('"\\$HOME \\n"') == "$HOME \\n"
    assert value("$NONE-") == "-"
    assert value("${NONE:-other}${EMPTY:-$HOME}${HOME:-x}") == "other/root/root"
    assert value("${HOME:+yes}${EMPTY:+no}") == "yes"
    assert value("5$") == "5$"
    assert changed(base, "ENV PATH=/opt:$PATH")["Env"][0] == "PATH=/opt:/bin"
    assert changed(base, "WORKDIR $HOME/src")["WorkingDir"] == "/root/src"
    assert changed(base, "CMD echo $HOME")["Cmd"][-1] == "echo $HOME"


def test_a_later_change_sees_the_former_ones() -> None:
    config = changed({"WorkingDir": "/srv"}, "ENV A=x", "ENV A=y B=$A", "WORKDIR $B", "WORKDIR z")
    assert config == {"Env": ["A=y", "B=x"], "WorkingDir": "/srv/x/z"}


def test_what_was_set_stays_beside_what_is_added() -> None:
    base: dict[str, Any] = {
        "Env": ["A=1", "B=2", "C=3"],
        "Labels": {"a": "1", "b": "2"},
        "ExposedPorts": {"80/tcp": {}},
        "Volumes": None,
        "OnBuild": ["RUN a"],
        "Unknown": {"x": [1]},
    }
    config = changed(base, "ENV B=x D=4", "LABEL b=x", "EXPOSE 81", "VOLUME /v", "ONBUILD RUN b")
    assert config == {
        "Env": ["A=1", "B=x", "C=3", "D=4"],
        "Labels": {"a": "1", "b": "x"},
        "ExposedPorts": {"80/tcp": {}, "81/tcp": {}},
        "Volumes": {"/v": {}},
        "OnBuild": ["RUN a", "RUN b"],
        "Unknown": {"x": [1]},
    }
    assert base["Env"] == ["A=1", "B=2", "C=3"]
    assert base["ExposedPorts"] == {"80/tcp": {}}


def test_a_new_entrypoint_drops_a_command_that_was_the_old_ones() -> None:
    base = {"Cmd": ["old"], "Entrypoint": ["x"]}
    assert changed(base, "ENTRYPOINT []") == {}
    assert changed(base, 'ENTRYPOINT ["new"]') == {"Entrypoint": ["new"]}
    both = {"Entrypoint": ["new"], "Cmd": ["new"]}
    assert changed(base, 'CMD ["new"]', 'ENTRYPOINT ["new"]') == both
    assert changed(base, 'ENTRYPOINT ["new"]', 'CMD ["new"]') == both


def test_the_images_own_shell_runs_the_shell_form() -> None:
    assert changed({"Shell": ["/bin/bash", "-ec"]}, "CMD x")["Cmd"] == ["/bin/bash", "-ec", "x"]


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("ENV A=1", {"Env": "A=1"}),
        ("LABEL a=1", {"Labels": ["a"]}),
        ("EXPOSE 1", {"ExposedPorts": [1]}),
        ("WORKDIR x", {"WorkingDir": 3}),
    ],
)
def test_a_base_whose_fields_have_another_type_is_an_invalid_image(text: str, config: dict[str, Any]) -> None:
    with pytest.raises(InvalidImage, match=r"^config\.config\."):
        changed(config, text)


@given(
    st.sampled_from(["ENV A=", "LABEL ", "USER ", "CMD ", "HEALTHCHECK ", "EXPOSE ", "VOLUME ", ""]),
    st.text(max_size=40),
)
def test_any_text_is_a_change_or_a_usage_error(instruction: str, text: str) -> None:
    with suppress(UsageError):
        config = changed({"Env": ["A=1"]}, instruction + text)
        assert json.loads(dump(config)) == config


# --- configs


def base_config(*layers: Digest, **more: object) -> dict[str, Any]:
    history = [
        {"created": f"2020-01-0{n + 1}T00:00:00Z", "created_by": f"step {n}"} for n in range(len(layers))
    ]
    return {
        "architecture": "arm64",
        "variant": "v8",
        "os": "linux",
        "created": "2020-02-02T00:00:00Z",
        "author": "somebody",
        "config": {"Env": ["A=1"], "Unknown": 1},
        "rootfs": {"type": "layers", "diff_ids": [str(each) for each in layers]},
        "history": history,
        "moby.buildkit.cache.v0": {"x": "ä"},
        **more,
    }


def extended(base: object, diff_id: Digest | None = DIFF_IDS[3], **more: Any) -> dict[str, Any]:
    body = extend_config(dump(base), **{"diff_id": diff_id, "created": WHEN, **more})
    fields: dict[str, Any] = json.loads(body)
    return fields


def test_a_config_gets_a_layer_and_its_history() -> None:
    base = base_config(*DIFF_IDS[:2])
    fields = extended(base, created_by="imgfs commit", author="me", message="fix")
    entry = {
        "created": "2024-05-06T07:08:09Z",
        "created_by": "imgfs commit",
        "author": "me",
        "comment": "fix",
    }
    assert fields == {
        **base,
        "created": "2024-05-06T07:08:09Z",
        "author": "me",
        "rootfs": {"type": "layers", "diff_ids": [str(each) for each in (*DIFF_IDS[:2], DIFF_IDS[3])]},
        "history": [*base["history"], entry],
    }
    assert list(fields) == list(base)


def test_a_config_without_a_new_layer_gets_an_entry_that_says_so() -> None:
    fields = extended(base_config(DIFF_IDS[0]), None, changes=[parse_change("CMD x")])
    assert fields["rootfs"]["diff_ids"] == [str(DIFF_IDS[0])]
    assert fields["history"][-1] == {"created": "2024-05-06T07:08:09Z", "empty_layer": True}
    assert fields["config"] == {"Env": ["A=1"], "Unknown": 1, "Cmd": [*SHELL, "x"]}
    assert fields["author"] == "somebody"


def test_times_are_written_in_utc_with_their_fraction() -> None:
    zone = timezone(timedelta(hours=2))
    when = datetime(2024, 1, 1, 1, 0, 0, 250_000, tzinfo=zone)
    assert extended(base_config(), created=when)["created"] == "2023-12-31T23:00:00.250000Z"


@pytest.mark.parametrize("history", [None, [], [{"empty_layer": True}], [{"created_by": "one"}]])
def test_layers_that_no_history_tells_of_get_an_entry_each(history: list[dict[str, Any]] | None) -> None:
    fields = extended(base_config(*DIFF_IDS[:3], history=history))
    assert sum(not entry.get("empty_layer") for entry in fields["history"]) == 4
    assert fields["history"][: len(history or [])] == (history or [])
    assert "created" in fields["history"][-1]


def test_a_bare_config_is_enough() -> None:
    fields = extended({"rootfs": {}})
    assert fields["rootfs"] == {"type": "layers", "diff_ids": [str(DIFF_IDS[3])]}
    assert "config" not in fields
    assert parse_config(dump(fields)).diff_ids == (DIFF_IDS[3],)


def test_the_same_config_comes_out_as_the_same_bytes() -> None:
    base = dump(base_config(DIFF_IDS[0]))
    bodies = {
        extend_config(base, diff_id=DIFF_IDS[1], created=WHEN, changes=[parse_change("ENV Z=1 B=2")])
        for _ in "ab"
    }
    assert len(bodies) == 1
    assert '"x":"ä"'.encode() in bodies.pop()


def test_a_base_that_is_no_config_is_refused() -> None:
    for body in (b"{}", b"[]", b"\xff", dump({"rootfs": {"diff_ids": ["sha256:0"]}})):
        with pytest.raises(InvalidImage):
            extend_config(body, diff_id=None, created=WHEN)


def test_a_message_that_is_no_text_is_refused() -> None:
    with pytest.raises(UsageError, match="not UTF-8"):
        extended(base_config(), message="caf\udce9")


# --- manifests


def descriptor(media_type: str, body: bytes = b"x", **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(Digest.of(body)), "size": len(body), **more}


def base_manifest(media_type: str, config: str, *layers: str, **more: object) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": descriptor(config, b"config", data="Y29uZmln"),
        "layers": [descriptor(each, b"layer %d" % number, urls=["u"]) for number, each in enumerate(layers)],
        **more,
    }


def grown(base: object, codec: str | None = "gzip", **annotations: str) -> dict[str, Any]:
    """The base with a new config and, for a codec, a layer."""
    layer = Descriptor(layer_type(codec), Digest.of(b"new layer"), 9) if codec else None
    config = Descriptor(OCI_CONFIG, Digest.of(b"new config"), 10)
    fields: dict[str, Any] = json.loads(extend_manifest(dump(base), config, layer, annotations))
    return fields


def types(manifest: Mapping[str, Any]) -> list[str]:
    return [part["mediaType"] for part in (manifest, manifest["config"], *manifest["layers"])]


def test_an_oci_manifest_gets_a_layer_and_keeps_the_others_as_they_are() -> None:
    base = base_manifest(OCI_MANIFEST, OCI_CONFIG, OCI_GZIP, DOCKER_GZIP, x={"unknown": 1})
    fields = grown(base, "zstd")
    new = descriptor(OCI_ZSTD, b"new layer")
    assert fields == {
        **base,
        "config": descriptor(OCI_CONFIG, b"new config"),
        "layers": [*base["layers"], new],
    }
    assert list(fields) == list(base)


def test_without_a_layer_only_the_config_is_new() -> None:
    base = base_manifest(OCI_MANIFEST, OCI_CONFIG, OCI_GZIP)
    assert grown(base, None) == {**base, "config": descriptor(OCI_CONFIG, b"new config")}


def test_a_docker_manifest_stays_docker() -> None:
    base = base_manifest(DOCKER_MANIFEST, DOCKER_CONFIG, DOCKER_GZIP, DOCKER_FOREIGN)
    assert types(grown(base)) == [DOCKER_MANIFEST, DOCKER_CONFIG, DOCKER_GZIP, DOCKER_FOREIGN, DOCKER_GZIP]
    assert types(grown(base, None)) == [DOCKER_MANIFEST, DOCKER_CONFIG, DOCKER_GZIP, DOCKER_FOREIGN]
    assert "annotations" not in grown(base, "gzip", a="1")


def test_a_zstd_layer_makes_a_docker_manifest_an_oci_one() -> None:
    docker = "application/vnd.docker.image.rootfs.diff.tar"
    base = base_manifest(
        DOCKER_MANIFEST, DOCKER_CONFIG, docker, DOCKER_GZIP, f"{docker}.zstd", DOCKER_FOREIGN
    )
    fields = grown(base, "zstd", a="1")
    oci = "application/vnd.oci.image.layer.v1.tar"
    foreign = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
    assert types(fields) == [OCI_MANIFEST, OCI_CONFIG, oci, OCI_GZIP, OCI_ZSTD, foreign, OCI_ZSTD]
    assert [each["digest"] for each in fields["layers"][:4]] == [each["digest"] for each in base["layers"]]
    assert fields["annotations"] == {"a": "1"}


def test_a_docker_manifest_can_be_made_an_oci_one_without_a_change() -> None:
    base = base_manifest(DOCKER_MANIFEST, DOCKER_CONFIG, DOCKER_GZIP, "other/type", x=1)
    fields = json.loads(as_oci(dump(base)))
    assert types(fields) == [OCI_MANIFEST, OCI_CONFIG, OCI_GZIP, "other/type"]
    assert fields["x"] == 1
    assert fields["layers"][0]["urls"] == ["u"]
    assert fields["config"]["digest"] == base["config"]["digest"]
    oci = dump(base_manifest(OCI_MANIFEST, OCI_CONFIG, DOCKER_GZIP))
    assert as_oci(oci) == oci


def test_a_manifest_that_did_not_say_its_type_does_so_now() -> None:
    base = base_manifest(OCI_MANIFEST, OCI_CONFIG, OCI_GZIP)
    del base["mediaType"]
    assert grown(base)["mediaType"] == OCI_MANIFEST


def test_what_was_said_of_the_bases_bytes_is_not_said_of_the_new_ones() -> None:
    base = base_manifest(
        OCI_MANIFEST,
        OCI_CONFIG,
        OCI_GZIP,
        subject=descriptor(OCI_MANIFEST),
        annotations={
            "org.opencontainers.image.created": "2020",
            "org.opencontainers.image.base.name": "x",
            "org.opencontainers.image.base.digest": "y",
            "com.amazon.soci.index-digest": "z",
            "org.opencontainers.image.title": "kept",
            "mine": "old",
        },
    )
    fields = grown(base, "gzip", mine="new")
    assert fields["annotations"] == {"org.opencontainers.image.title": "kept", "mine": "new"}
    assert "subject" not in fields


def test_a_base_that_is_no_manifest_is_refused() -> None:
    for body in (b"{}", dump({"manifests": []}), b"no"):
        with pytest.raises(InvalidImage):
            extend_manifest(body, Descriptor(OCI_CONFIG, DIFF_IDS[0], 1), None, {})


# --- truncate

EMPTY = {"created_by": "ENV", "empty_layer": True, "created": "2020-01-09T00:00:00Z"}


def image(count: int, **more: object) -> tuple[bytes, bytes]:
    config = dump(base_config(*DIFF_IDS[:count], **more))
    manifest = base_manifest(
        OCI_MANIFEST, OCI_CONFIG, *[OCI_GZIP] * count, annotations={"com.amazon.soci.x": "y"}
    )
    return dump(manifest), config


def cut(manifest: bytes, config: bytes, layers: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """`truncate`, and what holds for all it makes."""
    new_manifest, new_config = truncate(manifest, config, layers)
    document = parse_document(new_manifest, None)
    assert document.config.digest == Digest.of(new_config)  # type: ignore[union-attr]  # a manifest, surely
    assert document.config.size == len(new_config)  # type: ignore[union-attr]
    check_layers(document, parse_config(new_config))  # type: ignore[arg-type]
    return json.loads(new_manifest), json.loads(new_config)


def test_an_earlier_image_has_the_lower_layers_and_their_history() -> None:
    history = [
        EMPTY,
        {"created_by": "1", "created": "2020-01-01T00:00:00Z"},
        EMPTY,
        EMPTY,
        {"created_by": "2"},
        EMPTY,
    ]
    documents = image(3, history=[*history, {"created_by": "3"}, EMPTY])
    manifest, config = cut(*documents, 2)
    assert manifest["layers"] == json.loads(documents[0])["layers"][:2]
    assert "annotations" not in manifest
    assert config["rootfs"] == {"type": "layers", "diff_ids": [str(each) for each in DIFF_IDS[:2]]}
    assert config["history"] == history[:5]
    assert config["config"] == {"Env": ["A=1"], "Unknown": 1}
    assert config["created"] == "2020-02-02T00:00:00Z"
    manifest, config = cut(*documents, 1)
    assert config["history"] == history[:2]
    assert config["created"] == "2020-01-01T00:00:00Z"


def test_all_layers_are_the_image_itself() -> None:
    documents = image(3)
    assert truncate(*documents, 3) == documents


@pytest.mark.parametrize("history", [None, [], [EMPTY], [{"created_by": "1"}]])
def test_a_history_that_tells_too_little_is_kept(history: list[dict[str, Any]] | None) -> None:
    _, config = cut(*image(3, history=history), 2)
    assert config["history"] == history


@pytest.mark.parametrize("layers", [-1, 0, 4])
def test_an_image_has_no_layers_below_one_or_above_its_own(layers: int) -> None:
    with pytest.raises(UsageError, match=f"layer {layers} is not among the image's 3 layers"):
        truncate(*image(3), layers)


def test_truncating_documents_that_disagree_is_refused() -> None:
    with pytest.raises(InvalidImage, match="2 DiffIDs for 3 layers"):
        truncate(image(3)[0], image(2)[1], 1)


def test_growing_undoes_cutting() -> None:
    manifest, config = image(3)
    lower_manifest, lower_config = truncate(manifest, config, 2)
    again = parse_config(extend_config(lower_config, diff_id=DIFF_IDS[2], created=WHEN))
    assert again.diff_ids == parse_config(config).diff_ids
    assert len(again.history) == 3
    top = Descriptor(OCI_GZIP, Digest.of(b"layer 2"), 7)
    grown_again = extend_manifest(lower_manifest, Descriptor(OCI_CONFIG, DIFF_IDS[0], 1), top, {})
    digests = [each["digest"] for each in json.loads(grown_again)["layers"]]
    assert digests == [each["digest"] for each in json.loads(manifest)["layers"]]
