"""Tests of audio files: supported formats, truncated files, joined files, mp3 without a length, silence."""

from __future__ import annotations

import io
import logging
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from speechclip.common.errors import UserError
from speechclip.data.audio import SAMPLE_RATE, check_audio, check_not_silent, load_audio, num_samples
from speechclip.data.containers import SUPPORTED, parse_mp3_header
from speechclip.data.messages import MPG123, log_stderr

FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "wav24": ("WAV", "PCM_24"),
    "float": ("WAV", "FLOAT"),
    "flac": ("FLAC", "PCM_16"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "aiff": ("AIFF", "PCM_16"),
}
FUNCTIONS = [load_audio, num_samples, check_audio]
Reader = Callable[..., object]


def tone(seconds: float = 0.5, rate: int = SAMPLE_RATE, pitch: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def noise(seconds: float, rate: int = SAMPLE_RATE) -> np.ndarray:
    wave = tone(seconds, rate)
    return wave + np.random.default_rng(0).normal(0, 0.02, len(wave)).astype(np.float32)


def write(path: Path, wave: np.ndarray, rate: int = SAMPLE_RATE, kind: str = "wav") -> Path:
    name, subtype = FORMATS[kind]
    soundfile.write(path, wave, rate, format=name, subtype=subtype)
    return path


def encode(wave: np.ndarray, rate: int = SAMPLE_RATE, kind: str = "wav", **options: object) -> bytes:
    name, subtype = FORMATS[kind]
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format=name, subtype=subtype, **options)
    return buffer.getvalue()


def cut(path: Path, fraction: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    return path


def problem(function: Reader, source: Path | bytes) -> str:
    """Return the one line of a UserError without the file name."""
    with pytest.raises(UserError) as caught:
        function(source)
    message, name = str(caught.value), "the audio file" if isinstance(source, bytes) else str(source)
    assert message.startswith(f"{name}: ")
    assert "\n" not in message
    assert message.endswith(".")
    return message.removeprefix(f"{name}: ")


# -- formats -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".wav", ".mp3", ".raw", ".txt"])
@pytest.mark.parametrize("kind", FORMATS)
def test_load_audio_ignores_the_suffix(tmp_path: Path, kind: str, suffix: str) -> None:
    path = write(tmp_path / f"with space{suffix}", tone(), kind=kind)
    wave = load_audio(path)
    assert wave.dtype == np.float32
    assert wave.shape == (8000,)
    assert num_samples(path) == check_audio(path) == 8000
    lossy = kind in ("mp3", "ogg", "opus")
    assert np.abs(wave - tone())[500:-500].max() < (0.1 if lossy else 1e-4)
    assert np.array_equal(load_audio(path.read_bytes()), wave)


ALL_FORMATS = [
    (name, subtype) for name in soundfile.available_formats() for subtype in soundfile.available_subtypes(name)
]


@pytest.mark.parametrize(("name", "subtype"), ALL_FORMATS)
def test_every_format_is_read_completely_or_refused(tmp_path: Path, name: str, subtype: str) -> None:
    """Every format that libsndfile writes: the whole file, and the file cut at 60%."""
    path, wave = tmp_path / "a", noise(1.5)
    try:
        soundfile.write(path, wave, 8000 if name == "WVE" else SAMPLE_RATE, format=name, subtype=subtype)
    except soundfile.LibsndfileError:
        pytest.skip("libsndfile does not write it")
    if name in SUPPORTED and not subtype.startswith("DWVW"):
        loaded = load_audio(path)
        assert len(loaded) == num_samples(path) == check_audio(path)
        assert 24000 <= len(loaded) < 24512  # encodings in blocks fill the last one
        assert np.corrcoef(loaded[:24000], wave)[0, 1] > (0.99 if "PCM" in subtype else 0.9)
    else:
        for function in FUNCTIONS:
            assert problem(function, path).startswith(("unsupported audio format: ", "not readable as audio ("))
    if path.stat().st_size:
        kinds = ("truncated", "unsupported audio format: ", "not readable as audio (")
        assert problem(load_audio, cut(path, 0.6)).startswith(kinds)
        assert problem(check_audio, path).startswith(kinds)
        if name != "FLAC":  # its frames have to be decoded
            assert problem(num_samples, path).startswith(kinds)


def test_load_audio_averages_the_channels(tmp_path: Path) -> None:
    stereo = np.stack([tone(pitch=300), tone(pitch=500)], axis=1)
    path = write(tmp_path / "a", stereo, kind="float")
    assert np.array_equal(load_audio(path), stereo.mean(axis=1))


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
@pytest.mark.parametrize("frames", [3, 1000, 4411, 4412, 12345])
def test_load_audio_resamples(tmp_path: Path, rate: int, frames: int) -> None:
    wave = tone(frames / rate, rate)
    path = write(tmp_path / "a", wave, rate, kind="float")
    expected = soxr.resample(wave, rate, SAMPLE_RATE, quality="HQ")
    assert np.array_equal(load_audio(path), expected)
    assert num_samples(path) == len(expected)


# -- unusable files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", FUNCTIONS)
def test_missing_and_empty_files_are_refused(tmp_path: Path, function: Reader) -> None:
    assert problem(function, tmp_path / "no.wav") == "missing audio file. Check the path."
    assert problem(function, tmp_path) == "not a file. Check the path."
    (tmp_path / "empty").touch()
    assert problem(function, tmp_path / "empty") == "empty audio file (0 bytes). Copy the file again."
    with pytest.raises(UserError, match="^x{200}: cannot be read .File name too long.. Check the path.$"):
        function("x" * 300)
    (tmp_path / "text.wav").write_text("this is not audio at all\n" * 10)
    assert problem(function, tmp_path / "text.wav").startswith("not readable as audio (")
    for kind in ("wav", "float"):
        path = write(tmp_path / kind, np.zeros(0, np.float32), kind=kind)
        assert problem(function, path) == "zero-length audio. Record it again."


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("kind", ["wav", "wav24", "float"])
def test_truncated_wav_is_refused(tmp_path: Path, function: Reader, kind: str) -> None:
    path = write(tmp_path / "a.wav", tone(), kind=kind)
    size = path.stat().st_size
    assert problem(function, cut(path, 0.6)).startswith("truncated audio: ")
    path = write(tmp_path / "a.wav", tone(), kind=kind)
    path.write_bytes(path.read_bytes()[: size - 1])
    assert problem(function, path).startswith("truncated audio: ")
    path.write_bytes(path.read_bytes()[:30])
    expected = "truncated audio: the wav header ends before the samples. Copy the file again."
    assert problem(function, path) == expected


def test_truncated_wav_error_has_the_sizes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone())
    path.write_bytes(path.read_bytes()[: 44 + 1000])
    assert problem(load_audio, path) == "truncated audio: 1000 of 16000 bytes of samples. Copy the file again."


@pytest.mark.parametrize("function", [load_audio, check_audio])
@pytest.mark.parametrize("kind", ["flac", "mp3", "ogg", "opus", "aiff"])
@pytest.mark.parametrize("fraction", [0.3, 0.6, 0.95])
def test_truncated_audio_is_refused(tmp_path: Path, function: Reader, kind: str, fraction: float) -> None:
    path = write(tmp_path / "a", noise(5), kind=kind)
    assert "truncated" in problem(function, cut(path, fraction))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("function", [load_audio, check_audio])
def test_samples_that_are_not_finite_are_refused(tmp_path: Path, function: Reader, value: float) -> None:
    wave = tone()
    wave[4000] = value
    path = write(tmp_path / "a", wave, kind="float")
    assert problem(function, path) == "NaN or infinite samples. Write the file again."


def test_damaged_sample_rate_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone())
    data = bytearray(path.read_bytes())
    data[24:28] = struct.pack("<I", 3)
    path.write_bytes(data)
    for function in FUNCTIONS:
        assert problem(function, path) == "sample rate of 3 Hz, not 1000 to 768000 Hz. Convert the file."


# -- lengths in headers ------------------------------------------------------------------------------------------------


def test_flac_without_a_length_is_refused(tmp_path: Path) -> None:
    flac = write(tmp_path / "a.flac", tone(), kind="flac")
    data = bytearray(flac.read_bytes())
    data[21] &= 0xF0  # the 36 bits of STREAMINFO that hold the number of samples
    data[22:26] = bytes(4)
    flac.write_bytes(data)
    assert problem(num_samples, flac).startswith("the header does not store the length")


@pytest.mark.parametrize("riff", [0, 36, 0xFFFFFFFF])
@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0xFFFFFFFF])
@pytest.mark.parametrize("kind", ["wav", "float"])
def test_wav_without_a_length_is_read_to_its_end(tmp_path: Path, kind: str, size: int, riff: int) -> None:
    """Writers that are killed, or write to a pipe, leave such headers."""
    wave = noise(2.048)  # 64 kB of 16-bit samples
    path = write(tmp_path / "a.wav", wave, kind=kind)
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[4:8], data[at : at + 4] = struct.pack("<I", riff), struct.pack("<I", size)
    path.write_bytes(data)
    assert num_samples(path) == check_audio(path) == 32768
    assert np.abs(load_audio(path) - wave).max() < 1e-4


def test_wav_with_a_wrong_length_is_refused(tmp_path: Path) -> None:
    data = bytearray(encode(noise(1)))
    data[40:44] = struct.pack("<I", 20000)
    for function in FUNCTIONS:
        assert problem(function, bytes(data)).startswith("wrong length in the wav header: 12000 more bytes follow.")


def test_wav_with_chunks_around_the_samples_is_read(tmp_path: Path) -> None:
    data = encode(tone())
    extra = b"LIST" + struct.pack("<I", 5) + b"hello\0"  # odd length, padded
    body = data[12:36] + extra + data[36:] + extra
    for tail in (b"", b"TAG" + bytes(125)):  # an ID3 tag after the file
        assert len(load_audio(b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body + tail)) == 8000
    empty = encode(tone()[:0])
    assert problem(load_audio, empty + extra) == "zero-length audio. Record it again."


# -- several recordings in one file ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mp3", "ogg", "opus"])
def test_joined_files_are_read_completely(kind: str) -> None:
    first, second = encode(noise(2), kind=kind), encode(noise(1.5), kind=kind)
    wave = load_audio(first + second)
    assert len(wave) == num_samples(first + second) == check_audio(first + second) == 56000
    assert np.array_equal(wave, np.concatenate([load_audio(first), load_audio(second)]))
    for data in (first + second[: len(second) // 2], first[: len(first) // 2] + second):
        for function in FUNCTIONS:
            assert problem(function, data).startswith(("truncated", "corrupt audio: "))


def test_joined_mp3_with_two_sample_rates_is_read() -> None:
    first, second = encode(noise(2, 24000), 24000, "mp3"), encode(noise(1), kind="mp3")
    assert len(load_audio(first + second)) == num_samples(first + second) == 48000


@pytest.mark.parametrize("name", ["WAV", "RF64", "W64", "AIFF", "AU", "CAF", "NIST", "FLAC"])
def test_joined_files_of_other_formats_are_refused(name: str) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, noise(1), SAMPLE_RATE, format=name, subtype="PCM_16")
    assert len(load_audio(buffer.getvalue())) == 16000
    for function in (load_audio, check_audio):
        assert problem(function, 2 * buffer.getvalue()).startswith("several recordings in one ")


def test_ogg_with_a_lost_page_is_refused() -> None:
    data = encode(noise(20), kind="ogg")
    pages = [at for at in range(len(data)) if data.startswith(b"OggS", at)]
    assert len(pages) > 4
    lost = data[: pages[3]] + data[pages[4] :]
    assert problem(num_samples, lost).startswith("corrupt audio: ogg pages are missing before byte")


# -- mp3 ---------------------------------------------------------------------------------------------------------------


def mp3_without_length(seconds: float, rate: int, *, stereo: bool = False, mode: str = "CONSTANT") -> bytes:
    """Return an mp3 file without a Xing, Info or VBRI tag, as recorders and text-to-speech services write it."""
    wave = noise(seconds, rate)
    data = encode(
        np.stack([wave, wave], axis=1) if stereo else wave, rate, "mp3", bitrate_mode=mode, compression_level=0.5
    )
    header = parse_mp3_header(data[:4])
    assert header is not None
    assert data[4 + header.side :][:4] in (b"Xing", b"Info")
    return data[header.size :]


def frames_of(data: bytes) -> list[bytes]:
    found = []
    while data:
        header = parse_mp3_header(data[:4])
        assert header is not None
        found.append(data[: header.size])
        data = data[header.size :]
    return found


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE", "AVERAGE"])
@pytest.mark.parametrize("stereo", [False, True])
@pytest.mark.parametrize("rate", [8000, 16000, 22050, 24000, 44100, 48000])
def test_mp3_without_a_length_is_read_completely(tmp_path: Path, rate: int, stereo: bool, mode: str) -> None:
    path = tmp_path / "speech.wav"
    data = mp3_without_length(2, rate, stereo=stereo, mode=mode)
    path.write_bytes(data)
    samples = len(frames_of(data)) * (1152 if rate > 24000 else 576) - 529  # the decoder's delay
    assert samples >= 2 * rate
    assert num_samples(path) == len(load_audio(path)) == check_audio(path) == (samples * 32000 + rate) // (2 * rate)
    wave, expected = load_audio(path), np.abs(np.fft.rfft(noise(2), 32000))
    assert np.argmax(np.abs(np.fft.rfft(wave[:32000]))) == np.argmax(expected) == 880  # 440 Hz
    assert np.abs(wave[-8000:-4000]).max() > 0.2  # speech up to the end


@pytest.mark.parametrize("function", FUNCTIONS)
def test_cut_mp3_without_a_length_is_refused(function: Reader) -> None:
    data = mp3_without_length(2, 24000)
    assert len({len(frame) for frame in frames_of(data)}) == 1  # constant bit rate
    for size in (int(0.6 * len(data)) | 1, len(data) - 1, len(data) - 150):
        assert problem(function, data[:size]).startswith("truncated audio: the last mp3 frame lacks ")
    end = len(frames_of(data)[0])
    assert problem(function, data[: 5 * end + 3]) == (
        "truncated audio: the last mp3 frame lacks its header. Copy the file again."
    )


@pytest.mark.parametrize("function", FUNCTIONS)
def test_mp3_with_fewer_frames_than_its_tag_is_refused(function: Reader) -> None:
    frames = frames_of(encode(noise(2, 24000), 24000, "mp3"))
    message = problem(function, b"".join(frames[:60]))  # the cut is between two frames
    assert message == f"truncated audio: 59 of {len(frames) - 1} mp3 frames. Copy the file again."


TAGS: dict[str, Callable[[bytes], bytes]] = {
    "id3v2": lambda data: b"ID3\x03\0\0\0\0\x01\x00" + bytes(128) + data,
    "id3v2_padded": lambda data: b"ID3\x03\0\0\0\0\0\x0a" + b"x" * 10 + bytes(5000) + data,
    "id3v1": lambda data: data + b"TAG" + b"x" * 125,
    "ape": lambda data: data + b"APETAGEX" + struct.pack("<IIII8x", 2000, 32, 0, 0),
    "lyrics": lambda data: data + b"LYRICSBEGIN" + b"la " * 30 + b"000101LYRICS200" + b"TAG" + b"x" * 125,
    "zeros": lambda data: data + bytes(700),
    "unknown": lambda data: data + b"made by a recorder",
    "start_in_a_frame": lambda data: b"ID3\x03\0\0\0\0\0\x0a" + b"x" * 10 + data[100:],
}


@pytest.mark.parametrize("name", TAGS)
def test_mp3_with_tags_is_read(name: str) -> None:
    data = mp3_without_length(2, 24000)
    tagged, lost = TAGS[name](data), 384 if name == "start_in_a_frame" else 0
    assert num_samples(tagged) == len(load_audio(tagged)) == num_samples(data) - lost


@pytest.mark.parametrize("damage", [b"x" * 500, bytes(4000)])
def test_mp3_with_damage_between_frames_is_refused(damage: bytes) -> None:
    frames = frames_of(mp3_without_length(2, 24000))
    data = b"".join(frames[:40]) + damage + b"".join(frames[42:])
    assert problem(num_samples, data).startswith("corrupt audio: no mp3 frame at byte ")
    assert problem(num_samples, b"".join(frames[:40]) + bytes(20000)).startswith("corrupt audio: ")


def test_mp3_frames_in_a_wav_file_are_read() -> None:
    data = mp3_without_length(2, 24000)
    head = b"WAVEfmt " + struct.pack("<IHHIIHHHHIHHH", 30, 0x55, 1, 24000, 8000, 1, 0, 12, 1, 2, 192, 1, 0)
    riff = b"RIFF" + struct.pack("<I", len(head) + 8 + len(data)) + head + b"data" + struct.pack("<I", len(data)) + data
    assert np.array_equal(load_audio(riff), load_audio(data))
    assert problem(load_audio, riff[:-1000]).startswith("truncated audio: ")


def test_vbri_tag_is_no_audio() -> None:
    frames = frames_of(mp3_without_length(2, 24000))
    vbri = (frames[0][:4] + bytes(32) + b"VBRI" + struct.pack(">HHHII", 1, 0, 75, 0, len(frames))).ljust(
        len(frames[0]), b"\0"
    )
    assert num_samples(vbri + b"".join(frames)) == num_samples(b"".join(frames))
    assert problem(num_samples, vbri + b"".join(frames[:-5])).startswith("truncated audio: ")


# -- silence -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_check_audio_refuses_silence(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "a", np.zeros(40000, np.float32), kind=kind)
    assert problem(check_audio, path) == "silence: every sample is zero. Record it again."
    assert len(load_audio(path)) == num_samples(path) == 40000


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "ALAW", "ULAW", "DOUBLE"])
def test_check_audio_finds_a_signal_anywhere(tmp_path: Path, subtype: str) -> None:
    wave = np.zeros(40000)
    soundfile.write(tmp_path / "a.wav", wave, SAMPLE_RATE, subtype=subtype)
    assert problem(check_audio, tmp_path / "a.wav").startswith("silence: every sample is ")
    wave[-1] = 0.5
    soundfile.write(tmp_path / "a.wav", wave, SAMPLE_RATE, subtype=subtype)
    assert check_audio(tmp_path / "a.wav") == 40000


def test_check_not_silent_ignores_a_constant_offset() -> None:
    with pytest.raises(UserError, match="^q: silence: every sample is the same. Record it again.$"):
        check_not_silent("q", np.full(100, 0.25))
    check_not_silent("q", np.zeros(100), tone())


# -- messages of libraries ---------------------------------------------------------------------------------------------


def raw_lines(printed: str) -> list[str]:
    """Return lines that did not go through logging, which other tests may have connected to standard error."""
    return [line for line in printed.splitlines() if not line.startswith("warning: ")]


def test_messages_of_libmpg123_are_logged(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), log_stderr("a.mp3", MPG123):
        os.write(2, b"[src/libmpg123/id3.c:process_comment():584] error: No comment text\nanother thread\n")
    assert [record.getMessage() for record in caplog.records] == [
        "a.mp3: [src/libmpg123/id3.c:process_comment():584] error: No comment text"
    ]
    assert raw_lines(capfd.readouterr().err) == ["another thread"]


@pytest.mark.parametrize("name", soundfile.available_formats())
def test_damaged_files_print_nothing(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Headers with wrong bytes: the result is a waveform or one line, and no library writes to the terminal."""
    try:
        soundfile.write(tmp_path / "a", noise(1), 8000 if name == "WVE" else SAMPLE_RATE, format=name)
    except (soundfile.LibsndfileError, ValueError, TypeError):
        pytest.skip("libsndfile does not write it")
    data, random = (tmp_path / "a").read_bytes(), np.random.default_rng(0)
    messages: list[str] = []
    for _ in range(40):
        damaged = bytearray(data)
        for at in random.integers(0, min(len(data), 100), 3):
            damaged[at] = random.integers(256)
        (tmp_path / "a").write_bytes(damaged)
        for source in (bytes(damaged), tmp_path / "a"):
            try:
                assert check_audio(source) == num_samples(source) == len(load_audio(source))
            except UserError as error:
                messages.append(str(error))
    assert all("\n" not in message for message in messages)
    captured = capfd.readouterr()
    assert not captured.out
    assert raw_lines(captured.err) == []


def test_load_audio_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for data in (
        encode(noise(1), kind="mp3") * 2,
        b"ID3\x03\0\0\0\0\0\x0a" + b"COMM" * 2 + b"xx" + mp3_without_length(1, 24000),
    ):
        load_audio(data)
    captured = capfd.readouterr()
    assert not captured.out
    assert raw_lines(captured.err) == []
