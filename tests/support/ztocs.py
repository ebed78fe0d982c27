"""zTOCs for tests: of blobs that are scanned here, and of what flatc makes of JSON.

The schema is the field list of soci-snapshotter's ztoc/fbs/ztoc.fbs.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from imgfs.layer.codec.blob import Cut, decoder, sniff
from imgfs.layer.codec.span import decode_span
from imgfs.layer.codec.zlib_engine import ZlibEngine
from imgfs.layer.entry import Entry, Span
from imgfs.layer.index import LayerIndex
from imgfs.layer.indexwriter import IndexWriter
from imgfs.layer.scan import scan
from imgfs.layer.soci.ztoc_writer import build_ztoc, members, soci_spans
from imgfs.oci.descriptor import Descriptor, Digest
from tests.support.patience import allowed

SCHEMA = """
table Xattr { key: string; value: string; }
table File { name: string; type: string; uncompressed_offset: long; uncompressed_size: long; linkname: string;
  mode: long; uid: uint32; gid: uint32; uname: string; gname: string; mod_time: string;
  devmajor: long; devminor: long; xattrs: [Xattr]; }
enum Algorithm : byte { Gzip = 1, Uncompressed }
table Info { compression_algorithm: Algorithm = Gzip; max_span_id: int; span_digests: [string];
  checkpoints: [ubyte]; }
table Toc { metadata: [File]; }
table Ztoc { version: string; build_tool_identifier: string; compressed_archive_size: long;
  uncompressed_archive_size: long; toc: Toc; compression_info: Info; }
root_type Ztoc;
"""


class Layer(NamedTuple):
    """A blob, what is in it, and what a scan has found."""

    blob: bytes
    flat: bytes
    entries: list[Entry]
    spans: list[Span]

    def soci_spans(self) -> list[Span]:
        return soci_spans(self.spans, size=len(self.blob), read=reader(self.blob))

    def ztoc(self, tool: str = "test") -> bytes:
        found = members(reader(self.flat))
        return build_ztoc(found, self.soci_spans(), size=len(self.blob), flat_size=len(self.flat), tool=tool)


class _FlatBytes:
    def write(self, offset: int, piece: bytes | memoryview) -> None:
        pass


def scanned(blob: bytes, *, step: int = 4096) -> Layer:
    """Scan a blob, cutting it every `step` bytes."""
    cuts: list[Cut] = []
    decode = decoder(sniff(blob), cuts.append, 1 << 40, ZlibEngine)
    flat = b"".join(bytes(piece) for piece in decode.pieces(blob))
    layer = Descriptor("application/vnd.oci.image.layer.v1.tar", Digest.of(blob), len(blob))
    with TemporaryDirectory() as directory:
        path = Path(directory) / "index"
        writer = IndexWriter(path)
        try:
            scan(iter([blob]), layer, Digest.of(flat), _FlatBytes(), writer, step=step, engine=ZlibEngine)
        finally:
            writer.close()
        with LayerIndex(path) as index:
            spans = [index.span(number) for number in range(index.span_count())]
            return Layer(blob, flat, list(index.entries()), spans)


def reader(body: bytes) -> Callable[[int, int], bytes]:
    """Return what `read(start, end)` is in this code: the bytes there are."""
    return lambda start, end: body[start:end]


def decoded(spans: Sequence[Span], blob: bytes) -> bytes:
    """Return all that the spans hold, each decoded alone, and verified."""
    return b"".join(
        bytes(piece) for span in spans for piece in decode_span(span, [blob[span.start : span.end]])
    )


def flatc_reads(ztoc: bytes, directory: Path) -> dict[str, Any]:
    """Return a zTOC as flatc decodes it; bytes that are not UTF-8 are not for JSON."""
    (directory / "body.ztoc").write_bytes(ztoc)
    _flatc(directory, "--json", "--strict-json", "--raw-binary", "schema.fbs", "--", "body.ztoc")
    fields: dict[str, Any] = json.loads((directory / "body.json").read_bytes())
    return fields


def flatc_writes(fields: dict[str, Any], directory: Path) -> bytes:
    """Return the zTOC that flatc makes of these fields."""
    (directory / "body.json").write_text(json.dumps(fields))
    _flatc(directory, "--binary", "schema.fbs", "body.json")
    return (directory / "body.bin").read_bytes()


def _flatc(directory: Path, *words: str) -> None:
    (directory / "schema.fbs").write_text(SCHEMA)
    subprocess.run(["flatc", *words], cwd=directory, check=True, timeout=allowed(60), capture_output=True)
