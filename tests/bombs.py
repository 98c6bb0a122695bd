"""Small files that make FFmpeg take much memory."""

import struct
import zlib


def box(name: bytes, *content: bytes) -> bytes:
    """A box of an mp4 (ISO/IEC 14496-12)."""
    body = b"".join(content)
    return struct.pack(">I4s", 8 + len(body), name) + body


def mp4(samples: int) -> bytes:
    """One track that states so many samples of one byte each, of which the file has none."""
    sound = struct.pack(">6xH8xHHHHI", 1, 1, 16, 0, 0, 16_000 << 16)
    tables = box(
        b"stbl",
        box(b"stsd", struct.pack(">II", 0, 1), box(b"mp4a", sound)),
        box(b"stts", struct.pack(">IIII", 0, 1, samples, 1024)),
        box(b"stsc", struct.pack(">IIIII", 0, 1, 1, samples, 1)),
        box(b"stsz", struct.pack(">III", 0, 1, samples)),
        box(b"stco", struct.pack(">III", 0, 1, 0)),
    )
    media = box(
        b"mdia",
        box(b"mdhd", struct.pack(">IIIIIHH", 0, 0, 0, 16_000, 16_000, 0, 0)),
        box(b"hdlr", struct.pack(">II4s13x", 0, 0, b"soun")),
        box(b"minf", box(b"smhd", bytes(8)), tables),
    )
    header = box(b"tkhd", struct.pack(">IIIII64x", 7, 0, 0, 1, 0))
    movie = box(b"mvhd", struct.pack(">IIIII80x", 0, 0, 0, 16_000, 16_000))
    return box(b"ftyp", b"M4A ", bytes(4)) + box(b"moov", movie, box(b"trak", header, media))


def tag(frames: int, letters: int) -> bytes:
    """An ID3v2.4 tag of compressed texts."""

    def size(number: int) -> bytes:
        return bytes(number >> shift & 127 for shift in (21, 14, 7, 0))

    text = b"\3" + b"a" * letters
    packed = size(len(text)) + zlib.compress(text, 9)
    body = b"".join(b"T%03d" % i + size(len(packed)) + b"\0\x09" + packed for i in range(frames))
    return b"ID3\4\0\0" + size(len(body)) + body
