"""Check audio containers for completeness.

libsndfile reads a cut file without a warning if the format is not compressed. It reads only the first recording of
joined ogg and mp3 files, and it needs a tag to find the length of an mp3 file. This module reads the containers itself.
It refuses cut files, and it splits a file into parts that libsndfile reads completely.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

SUPPORTED = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "NIST", "HTK", "FLAC", "OGG", "MP3")
_UNREADABLE_SUBTYPES = ("DWVW_12", "DWVW_16", "DWVW_24")  # libsndfile writes them, but soundfile cannot read them

_OPEN_ENDED = 0x7FFFF000  # bytes; sox and ffmpeg write a RIFF size from here on for "unknown" if they write to a pipe
_WAV_MP3 = 0x55  # the encoding of mp3 frames in a wav file
_TRAILING = 1024  # bytes; tags and padding after the samples may be this long
_MAX_FRAME = 2881  # bytes of the longest mp3 frame (Layer II, 384 kbit/s at 32 kHz: 1728; free room for Layer I)

_COPY = "Copy the file again."
_WRITE = "Write the file again, and not to a pipe."
_JOINED = "Split it into one file per recording."

_W64_RIFF = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
_FLAC_START = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")  # the marker and the header of the STREAMINFO block


class AudioProblem(Exception):
    """A problem of an audio file: ``problem. Fix.``, without the name of the file."""


def find_parts(handle: BinaryIO, size: int) -> list[bytes] | None:
    """Check a container and return its recordings.

    Args:
        handle: the file, opened for reading. Its position changes.
        size: length of the file in bytes.

    Returns:
        Files that libsndfile reads one after the other, or None if libsndfile reads the file as it is.

    Raises:
        AudioProblem: the file is truncated or damaged, or holds several recordings of a format that is not split.
    """
    handle.seek(0)
    magic = handle.read(16)
    if magic[:2] == b"\xf0\x7e":  # libsndfile prints to standard output if such a file is damaged
        raise AudioProblem("unsupported audio format: SDS. Convert the file to wav or flac.")
    if magic[:4] in (b"RIFF", b"RIFX", b"RF64"):
        return _check_riff(handle, size, "big" if magic[:4] == b"RIFX" else "little")
    if magic == _W64_RIFF:
        _check_w64(handle, size)
    elif magic[:4] == b"FORM":
        _check_aiff(handle, size)
    elif magic[:4] in (b".snd", b"dns."):
        _check_au(handle, size, "big" if magic[:4] == b".snd" else "little")
    elif magic[:4] == b"caff":
        _check_caf(handle, size)
    elif magic[:7] == b"NIST_1A":
        _check_nist(handle, size)
    elif magic[:4] == b"OggS":
        return _split_ogg(handle, size)
    elif magic[:3] == b"ID3" or (magic[:1] == b"\xff" and parse_mp3_header(magic[:4])):
        handle.seek(0)
        return _split_mp3(handle.read(size))
    return None


def check_format(name: str, subtype: str) -> None:
    """Check that a format stores its length, so that a cut file can be found.

    Raises:
        AudioProblem: the format is not supported.
    """
    if name not in SUPPORTED or subtype in _UNREADABLE_SUBTYPES:
        kind = name if name not in SUPPORTED else f"{name} {subtype}"
        raise AudioProblem(f"unsupported audio format: {kind}. Convert the file to wav or flac.")


def check_single_flac(data: bytes) -> None:
    """Check that a flac file holds one recording: libsndfile reads only the first.

    Raises:
        AudioProblem: another flac header follows.
    """
    if _FLAC_START.search(data, 4):
        raise AudioProblem(f"several recordings in one flac file. {_JOINED}")


def _truncated(found: int, needed: int) -> AudioProblem:
    return AudioProblem(f"truncated audio: {found} of {needed} bytes of samples. {_COPY}")


def _check_rest(handle: BinaryIO, end: int, size: int, marks: tuple[bytes, ...], what: str) -> None:
    """Refuse another recording, or samples that the header does not count, after the end of the samples."""
    handle.seek(end)
    if handle.read(4) in marks:
        raise AudioProblem(f"several recordings in one {what} file. {_JOINED}")
    if size - end > _TRAILING:
        raise AudioProblem(f"wrong length in the {what} header: {size - end} more bytes follow. {_WRITE}")


def _check_riff(handle: BinaryIO, size: int, order: Literal["little", "big"]) -> list[bytes] | None:
    """Check the chunks of a wav or RF64 file. Return the file with the right sizes if its header lacks them."""
    position, long_data, encoding = 12, -1, 0
    while position + 8 <= size:
        handle.seek(position)
        name, length = handle.read(4), int.from_bytes(handle.read(4), order)
        start = position + 8
        if name == b"ds64":  # the 64-bit sizes of RF64: RIFF, data
            long_data = int.from_bytes(handle.read(16)[8:], order)
        if name == b"fmt ":
            encoding = int.from_bytes(handle.read(2), order)
        if name == b"data" and encoding == _WAV_MP3 and start + length <= size:
            handle.seek(start)
            return _split_mp3(handle.read(length))
        if name == b"data":
            if length == 0xFFFFFFFF and long_data >= 0:
                length = long_data
            elif length >= _OPEN_ENDED:
                return None  # written to a pipe; the samples end with the file
            if start + length > size:
                raise _truncated(size - start, length)
            end = start + length + length % 2
            if _is_chunk_list(handle, end, size, order):
                return None
            if length == 0:  # the writer never filled in the sizes
                handle.seek(0)
                content = bytearray(handle.read(size))
                content[4:8] = (size - 8).to_bytes(4, order)
                content[position + 4 : start] = (size - start).to_bytes(4, order)
                return [bytes(content)]
            _check_rest(handle, end, size, (b"RIFF", b"RIFX", b"RF64"), "wav")
            return None
        position = start + length + length % 2
    raise AudioProblem(f"truncated audio: the wav header ends before the samples. {_COPY}")


def _is_chunk_list(handle: BinaryIO, position: int, size: int, order: Literal["little", "big"]) -> bool:
    """Return whether the rest of a wav file consists of chunks, which hold no samples."""
    while position + 8 <= size:
        handle.seek(position)
        name, length = handle.read(4), int.from_bytes(handle.read(4), order)
        if not re.fullmatch(rb"[ -~]{4}", name) or name in (b"RIFF", b"RIFX", b"RF64"):
            return False
        position += 8 + length + length % 2
    return size - 1 <= position <= size + 1  # the last padding byte may be missing, or one may be too many


def _check_w64(handle: BinaryIO, size: int) -> None:
    position = 40  # after the file's GUID and size and the GUID of the type
    while position + 24 <= size:
        handle.seek(position)
        name, length = handle.read(16), int.from_bytes(handle.read(8), "little")
        if name[:4] == b"data":
            if position + length > size:
                raise _truncated(size - position - 24, length - 24)
            _check_rest(handle, min(size, position + (length + 7) // 8 * 8), size, (b"riff",), "w64")
            return
        position += max(24, (length + 7) // 8 * 8)
    raise AudioProblem(f"truncated audio: the w64 header ends before the samples. {_COPY}")


def _check_aiff(handle: BinaryIO, size: int) -> None:
    handle.seek(4)
    total = int.from_bytes(handle.read(4), "big") + 8
    if total > size:
        raise AudioProblem(f"truncated audio: the last {total - size} bytes are missing. {_COPY}")
    _check_rest(handle, total + total % 2, size, (b"FORM",), "aiff")


def _check_au(handle: BinaryIO, size: int, order: Literal["little", "big"]) -> None:
    handle.seek(4)
    start, length = (int.from_bytes(handle.read(4), order) for _ in range(2))
    if length == 0xFFFFFFFF:
        return  # the format's mark for "until the end of the file"
    if start + length > size:
        raise _truncated(size - start, length)
    _check_rest(handle, start + length, size, (b".snd", b"dns."), "au")


def _check_caf(handle: BinaryIO, size: int) -> None:
    position = 8
    while position + 12 <= size:
        handle.seek(position)
        name, length = handle.read(4), int.from_bytes(handle.read(8), "big", signed=True)
        if name == b"data" and length == -1:
            return  # the format's mark for "until the end of the file"
        if length < 0:
            break
        if position + 12 + length > size:
            raise _truncated(size - position - 12, length)
        position += 12 + length
        if name == b"data":
            handle.seek(position)
            if handle.read(4) == b"caff":
                raise AudioProblem(f"several recordings in one caf file. {_JOINED}")
            return
    raise AudioProblem(f"truncated audio: the caf header ends before the samples. {_COPY}")


def _check_nist(handle: BinaryIO, size: int) -> None:
    handle.seek(8)
    head = handle.read(8).strip()
    start = int(head) if head.isdigit() else 1024
    handle.seek(0)
    header = handle.read(start)
    fields = dict(re.findall(rb"(?m)^(\w+) -i (\d+)", header))
    if b"sample_count" not in fields:
        raise AudioProblem(f"the NIST header has no sample_count. {_WRITE}")
    frames, channels = int(fields[b"sample_count"]), int(fields.get(b"channel_count", b"1"))
    law = re.search(rb"(?m)^sample_coding -s\d+ (ulaw|mu-law|alaw)", header)  # one byte, whatever sample_n_bytes says
    length = frames * channels * (1 if law else int(fields.get(b"sample_n_bytes", b"2")))
    if start + length > size:
        raise _truncated(max(0, size - start), length)
    _check_rest(handle, start + length, size, (b"NIST",), "NIST")


def _split_ogg(handle: BinaryIO, size: int) -> list[bytes] | None:
    """Read all pages of an ogg file and return its recordings (links of a chain), or None if it has one."""
    links: list[int] = []
    pages: dict[int, int] = {}  # serial number of an open stream -> number of its next page
    position, in_header = 0, False
    while position < size:
        handle.seek(position)
        head = handle.read(27)
        if head[:4] != b"OggS":
            handle.seek(position)
            if pages or size - position > _TRAILING or b"OggS" in handle.read(size - position):
                raise AudioProblem(f"truncated or corrupt audio: no ogg page at byte {position}. {_COPY}")
            break  # a tag of another format
        if len(head) < 27:
            raise AudioProblem(f"truncated audio: the ogg stream has no last page. {_COPY}")
        table = handle.read(head[26])
        flags, serial, number = head[5], *struct.unpack("<II", head[14:22])
        if flags & 2:
            if not pages:
                links.append(position)
            elif not in_header:
                break  # a recording was cut before this one was added
            pages[serial] = number
        in_header = bool(flags & 2)
        if serial in pages and number != pages[serial]:
            raise AudioProblem(f"corrupt audio: ogg pages are missing before byte {position}. {_COPY}")
        pages[serial] = number + 1
        position += 27 + len(table) + sum(table)
        if len(table) < head[26] or position > size:
            break
        if flags & 4:
            del pages[serial]
    if pages or not links:
        raise AudioProblem(f"truncated audio: the ogg stream has no last page. {_COPY}")
    if len(links) == 1:
        return None
    handle.seek(0)
    content = handle.read(position)
    return [content[start:stop] for start, stop in zip(links, [*links[1:], position], strict=True)]


@dataclass(frozen=True)
class Mp3Header:
    """The fields of an mp3 frame header.

    Attributes:
        kind: what stays the same within a recording: version bits, layer, rate in Hz and whether it is mono.
        size: length of the frame in bytes.
        side: bytes of side information, which follow the header in Layer III.
    """

    kind: tuple[int, int, int, bool]
    size: int
    side: int


_BIT_RATES = {  # kbit/s by (MPEG-1, layer), from index 1
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = (44100, 48000, 32000)  # Hz in MPEG-1; half of it in MPEG-2, a quarter in MPEG-2.5


def parse_mp3_header(head: bytes) -> Mp3Header | None:
    """Parse the four bytes of a frame header (ISO 11172-3, 13818-3); None if they are not one."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    index, rate_index = head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer == 4 or index in (0, 15) or rate_index == 3:
        return None  # reserved values; index 0 is the free format, which has no frame size
    first = version == 3
    rate = _RATES[rate_index] >> (0 if first else 1 if version == 2 else 2)
    mono = head[3] >> 6 == 3
    bits = _BIT_RATES[first, layer][index - 1] * 1000
    padding = head[2] >> 1 & 1
    if layer == 1:
        size = (12 * bits // rate + padding) * 4
    else:
        size = (144 if first or layer == 2 else 72) * bits // rate + padding
    side = (17 if mono else 32) if first else (9 if mono else 17)
    return Mp3Header((version, layer, rate, mono), size, side)


@dataclass
class _Mp3Part:
    """One recording of an mp3 file.

    Attributes:
        header: of the first frame.
        start: position of its first byte.
        stop: position after its last byte.
        frames: number of frames, without the frame of the tag.
        expected: number of frames in the tag, None without a number.
        has_tag: whether ``start`` is a tag that libsndfile reads.
    """

    header: Mp3Header
    start: int
    stop: int
    frames: int = 0
    expected: int | None = None
    has_tag: bool = False


def _split_mp3(data: bytes) -> list[bytes] | None:
    """Count the frames of an mp3 file and return its recordings. Each one starts with a tag that holds the count."""
    parts: list[_Mp3Part] = []
    position = _after_tags(data, 0)
    if data[position : position + 4] == b"fLaC":
        return None  # a flac file that starts with an ID3 tag
    for start, header in _mp3_frames(data, position):
        stop = start + header.size
        tag = _find_length_tag(data[start:stop], header)
        if not parts or tag is not None or parts[-1].header.kind != header.kind or parts[-1].stop != start:
            parts.append(_Mp3Part(header, start, start))
        part = parts[-1]
        if tag is None:
            part.frames += 1
        else:
            name, expected = tag
            part.expected, part.has_tag = expected, expected is not None and name != b"VBRI"
            if not part.has_tag:
                part.start = stop
        part.stop = stop
    for part in parts:
        slack = 0 if part.has_tag else 1  # some writers of VBRI tags count the tag
        if part.expected is not None and part.frames + slack < part.expected:
            raise AudioProblem(f"truncated audio: {part.frames} of {part.expected} mp3 frames. {_COPY}")
    parts = [part for part in parts if part.frames]
    if not parts:
        raise AudioProblem(f"no mp3 frames. {_COPY}")
    if any(part.header.kind[1] != 3 for part in parts):
        raise AudioProblem("unsupported audio format: MPEG Layer I or II. Convert the file to wav or flac.")
    return [_with_length(data[part.start : part.stop], part) for part in parts]


def _with_length(content: bytes, part: _Mp3Part) -> bytes:
    """Return a recording that starts with the right number of frames. libsndfile reads no more than this number."""
    if part.has_tag and part.frames == part.expected:
        return content
    first = parse_mp3_header(content[:4])
    assert first is not None
    frames = content[first.size :] if part.has_tag else content
    return _length_tag(frames[:4], part.frames) + frames


def _mp3_frames(data: bytes, position: int) -> Iterator[tuple[int, Mp3Header]]:
    """Yield the start and the header of each frame.

    Raises:
        AudioProblem: the last frame is cut, or there are bytes that are neither a frame nor a tag.
    """
    found = False
    while position < len(data):
        header = parse_mp3_header(data[position : position + 4])
        if header is not None:
            if position + header.size > len(data):
                missing = position + header.size - len(data)
                raise AudioProblem(f"truncated audio: the last mp3 frame lacks {missing} bytes. {_COPY}")
            found = True
            yield position, header
            position += header.size
        elif (after := _after_tags(data, position)) > position:
            position = after
        elif len(data) - position < 4 and data[position] == 0xFF:
            raise AudioProblem(f"truncated audio: the last mp3 frame lacks its header. {_COPY}")
        else:
            following = _next_frame(data, position)
            if found and not following and len(data) - position <= _TRAILING and data[position] != 0xFF:
                return  # a tag of another kind at the end
            if found or not following or following - position > _MAX_FRAME:
                raise AudioProblem(f"corrupt audio: no mp3 frame at byte {position}. {_COPY}")
            position = following  # the recorder started within a frame


def _next_frame(data: bytes, position: int) -> int:
    """Return where the next two frames in a row start, 0 without such frames."""
    while (position := data.find(b"\xff", position + 1)) >= 0:
        header = parse_mp3_header(data[position : position + 4])
        if header is not None:
            following = parse_mp3_header(data[position + header.size : position + header.size + 4])
            if following is not None and following.kind == header.kind:
                return position
    return 0


def _after_tags(data: bytes, position: int) -> int:
    """Return the position after ID3, APE and Lyrics3 tags and after zeros that fill at most one frame."""
    while True:
        head = data[position : position + 32]
        if head[:3] == b"ID3" and len(head) >= 10:  # the size: four bytes of seven bits
            size = sum((byte & 127) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
            position += 10 + size + (10 if head[5] & 16 else 0)
            zeros = re.compile(rb"\0*").match(data, position)
            position = zeros.end() if zeros else position
        elif head[:3] == b"TAG" and position + 128 <= len(data):
            position += 128
        elif head[:8] == b"APETAGEX" and len(head) == 32:
            size, flags = int.from_bytes(head[12:16], "little"), int.from_bytes(head[20:24], "little")
            position += 32 if not flags & 1 << 29 else 32 + size  # a header stands before the items, a footer after
        elif head[:11] == b"LYRICSBEGIN" and (end := data.find(b"LYRICS200", position)) >= 0:
            position = end + 9
        elif head[:1] == b"\0":
            zeros = re.compile(rb"\0+").match(data, position)
            assert zeros is not None
            if zeros.end() - position > _MAX_FRAME:
                return position
            position = zeros.end()
        else:
            return min(position, len(data))


def _find_length_tag(frame: bytes, header: Mp3Header) -> tuple[bytes, int | None] | None:
    """Return the name of a Xing, Info or VBRI tag and its number of frames, or None if the frame holds audio."""
    if header.kind[1] != 3:
        return None
    for start in (4 + header.side, 6 + header.side):  # without and with a checksum
        if frame[start : start + 4] in (b"Xing", b"Info") and len(frame) >= start + 12:
            count = int.from_bytes(frame[start + 8 : start + 12], "big") if frame[start + 7] & 1 else None
            return frame[start : start + 4], count
    if frame[36:40] == b"VBRI" and len(frame) >= 54:
        return b"VBRI", int.from_bytes(frame[50:54], "big")
    return None


def _length_tag(head: bytes, frames: int) -> bytes:
    """Return an Info frame with the number of frames, for a stream whose first frame header is ``head``."""
    for index in range(1, 15):
        found = bytes((0xFF, head[1] | 1, index << 4 | head[2] & 0x0C, head[3]))
        header = parse_mp3_header(found)
        if header is not None and header.size >= 4 + header.side + 12:
            tag = found + bytes(header.side) + b"Info" + (1).to_bytes(4, "big") + frames.to_bytes(4, "big")
            return tag.ljust(header.size, b"\0")
    raise AssertionError("the largest frame has room for a tag")
