"""Tests of image files and images in memory: one policy for colours, orientation, transparency and size."""

from __future__ import annotations

import io
import logging
import threading
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from speechclip.common.errors import UserError
from speechclip.data.images import as_image, check_image, check_size, list_images, load_image, to_rgb

PIXELS = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
FUNCTIONS = [load_image, check_image]
Reader = Callable[..., object]


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def problem(function: Reader, source: Any, name: str = "") -> str:
    """Return the one line of a UserError without the file name."""
    with pytest.raises(UserError) as caught:
        function(source)
    message, name = str(caught.value), name or str(source)
    assert message.startswith(f"{name}: ")
    assert "\n" not in message
    assert message.endswith(".")
    return message.removeprefix(f"{name}: ")


def ramp(stop: float, kind: str) -> Image.Image:
    return Image.fromarray(np.tile(np.linspace(0, stop, 300).astype(kind), (200, 1)))


# -- colours -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("PNG", "P"), ("TIFF", "LAB")]
)
def test_load_image_equals_clips_preprocessing(tmp_path: Path, kind: str, mode: str) -> None:
    if mode == "LAB":
        image = Image.frombytes("LAB", (160, 120), PIXELS.tobytes())
    else:
        image = Image.fromarray(PIXELS).convert(mode)
    path = tmp_path / "a"
    path.write_bytes(encode(image, kind))
    loaded = load_image(path)
    with Image.open(path) as opened:
        expected = opened.convert("RGB")
    assert (loaded.mode, loaded.size) == ("RGB", (160, 120))
    assert np.array_equal(loaded, expected)
    assert np.array_equal(load_image(path.read_bytes()), expected)
    check_image(path)


GREY = [
    ("PNG", ramp(65535, "uint16")),
    ("TIFF", ramp(65535, "uint16")),
    ("JPEG2000", ramp(65535, "uint16")),
    ("PPM", ramp(65535, "uint16")),
    ("TIFF", ramp(65535, ">u2")),
    ("TIFF", ramp(1, "float32")),
    ("TIFF", ramp(255, "float32")),
    ("TIFF", ramp(65535, "float32")),
    ("TIFF", ramp(255, "int32")),
    ("TIFF", ramp(65535, "int32")),
    ("PNG", ramp(255, "uint8")),
]


@pytest.mark.parametrize(("kind", "image"), GREY)
def test_grey_of_every_depth_has_the_same_mean(kind: str, image: Image.Image) -> None:
    data = encode(image, kind)
    check_image(data)
    for loaded in (load_image(data), to_rgb(image, "a"), as_image(image)):
        values = np.asarray(loaded)
        assert loaded.mode == "RGB"
        assert values.mean() == pytest.approx(127.5, abs=0.6 if image.mode in ("L", "I") else 0.01)
        assert (values[:, 0] == 0).all() and (values[:, -1] == 255).all()


def test_dark_16_bit_picture_stays_dark() -> None:
    assert np.asarray(load_image(encode(ramp(257 * 40, "uint16"), "PNG"))).max() == 40


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, np.nan], "NaN or infinite pixels. Save it with 8 bits per channel."),
        ([0, np.inf], "NaN or infinite pixels. Save it with 8 bits per channel."),
        ([-1, 1], "pixels from -1 to 1. Save it with 8 bits per channel."),
        ([0, 1e6], "pixels from 0 to 1e+06. Save it with 8 bits per channel."),
    ],
)
def test_grey_without_a_range_is_refused(tmp_path: Path, function: Reader, values: list[float], message: str) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(np.array([values], np.float32)).save(path)
    assert problem(function, path) == message


# -- orientation and transparency --------------------------------------------------------------------------------------

UPRIGHT = np.array([[0, 1, 2], [3, 4, 5]], np.uint8) * 40
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: np.rot90(UPRIGHT),
    7: UPRIGHT[::-1, ::-1].T,
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied_once(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(Image.fromarray(np.ascontiguousarray(STORED[orientation])), kind, exif=exif, **options)
    loaded = load_image(data)
    assert np.array_equal(np.asarray(loaded)[:, :, 0], UPRIGHT)
    assert np.array_equal(as_image(loaded), loaded)
    with Image.open(io.BytesIO(data)) as opened:
        assert np.array_equal(as_image(opened), loaded)


def test_phone_picture_stands_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", exif=exif)
    assert load_image(tmp_path / "a.jpg").size == (120, 160)
    check_image(tmp_path / "a.jpg")


def test_damaged_exif_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 1, "a camera with a long name"
    data = encode(Image.fromarray(PIXELS), "JPEG", exif=exif)
    data = data.replace(b"\x01\x0f\x00\x02\x00\x00\x00", b"\x01\x0f\x00\x02\x7f\x00\x00")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image(data, "a.jpg").size == (160, 120)
    assert all(record.getMessage().startswith("a.jpg: ") for record in caplog.records)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparent_pixels_become_white(kind: str) -> None:
    rgba = np.full((4, 4, 4), 200, np.uint8)
    rgba[:, 0, 3], rgba[:, 1, 3], rgba[:, 2:, 3] = 0, 51, 255
    image = Image.fromarray(rgba)
    loaded = np.asarray(load_image(encode(image, kind, lossless=True, exact=True)))
    assert loaded[0, :, 0].tolist() == [255, 244, 200, 200]  # 200 * 0.2 + 255 * 0.8 = 244
    assert np.array_equal(as_image(image), loaded)
    assert np.array_equal(as_image(rgba), loaded)


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_transparent_colour_becomes_white(mode: str) -> None:
    image = Image.new(mode, (4, 4), 7 if mode != "RGB" else (7, 7, 7))
    if mode == "P":
        image.putpalette([7, 7, 7] * 256)
    data = encode(image, "PNG", transparency=7 if mode != "RGB" else (7, 7, 7))
    assert np.asarray(load_image(data)).min() == 255
    assert np.asarray(load_image(encode(image, "PNG"))).max() == 7


# -- size --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [*FUNCTIONS, as_image])
@pytest.mark.parametrize("size", [(60000, 1), (1, 60000), (2020, 20)])
def test_long_pictures_are_refused(tmp_path: Path, function: Reader, size: tuple[int, int]) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", size).save(path)
    tracemalloc.start()
    try:
        assert problem(function, path) == f"image too long ({size[0]}x{size[1]} pixels, at most 100:1). Crop it."
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()
    with pytest.raises(UserError, match=r"^image: image too long"):
        as_image(Image.open(path))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("side", [13400, 40000])
def test_decompression_bombs_are_refused(tmp_path: Path, function: Reader, side: int) -> None:
    path = tmp_path / "a.png"
    data = bytearray(encode(Image.new("1", (8, 8)), "PNG"))
    data[16:24] = side.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)
    assert problem(function, path).startswith("image too large (")


def test_check_size_accepts_panoramas() -> None:
    check_size((20000, 200), "a")
    check_size((13000, 13000), "a")
    with pytest.raises(UserError, match="^a: image without pixels"):
        check_size((0, 10), "a")


# -- unusable files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("fraction", [0.3, 0.7, 0.98])
def test_truncated_images_are_refused(tmp_path: Path, function: Reader, kind: str, fraction: float) -> None:
    path, data = tmp_path / "a", encode(Image.fromarray(PIXELS), kind)
    path.write_bytes(data[: int(len(data) * fraction)])
    assert problem(function, path).startswith("truncated or corrupt image (")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_other_bad_images_are_refused(tmp_path: Path, function: Reader) -> None:
    assert problem(function, tmp_path / "no.jpg") == "missing image file. Check the path."
    assert problem(function, tmp_path) == "not a file. Check the path."
    (tmp_path / "empty.jpg").touch()
    assert problem(function, tmp_path / "empty.jpg") == "empty image file (0 bytes). Copy the file again."
    assert problem(function, "x" * 300, "x" * 200) == "cannot be read (File name too long). Check the path."
    (tmp_path / "text.jpg").write_text("<html>not found</html>")
    assert problem(function, tmp_path / "text.jpg") == "not an image. Save it as JPEG or PNG."


def test_damaged_tiff_prints_nothing(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    data = bytearray(encode(Image.fromarray(PIXELS), "TIFF", compression="tiff_deflate"))
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    with caplog.at_level(logging.WARNING):
        assert problem(load_image, bytes(data), "the image file").startswith("truncated or corrupt image (")
    printed = capfd.readouterr()
    assert not printed.out
    assert all(line.startswith("warning: the image file: ") for line in printed.err.splitlines())  # a log line
    assert caplog.records
    assert all(record.getMessage().startswith("the image file: ") for record in caplog.records)


def test_warnings_of_pil_are_logged_per_thread(caplog: pytest.LogCaptureFixture) -> None:
    palette = Image.new("P", (4, 4))
    palette.putpalette([7, 7, 7] * 256)
    data = encode(palette, "PNG", transparency=bytes(10))

    def load(name: str) -> None:
        for _ in range(20):
            load_image(data, name)

    def cut(name: str) -> None:
        for _ in range(20):
            with pytest.raises(UserError, match=f"^{name}: truncated or corrupt"):
                load_image(encode(Image.fromarray(PIXELS), "TIFF", compression="tiff_lzw")[:-60], name)

    threads = [threading.Thread(target=cut if at % 2 else load, args=(f"file{at}",)) for at in range(4)]
    before = warnings.showwarning, list(warnings.filters)
    with warnings.catch_warnings(record=True) as raw, caplog.at_level(logging.WARNING):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not raw
    assert (warnings.showwarning, list(warnings.filters)) == before
    names = {record.getMessage().split(":")[0] for record in caplog.records}
    assert {"file1", "file3"} <= names <= {"file0", "file1", "file2", "file3"}


# -- images in memory --------------------------------------------------------------------------------------------------

FORMS: dict[str, Callable[[Path], Any]] = {
    "path": lambda path: path,
    "string": str,
    "bytes": lambda path: path.read_bytes(),
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "file": lambda path: path.open("rb"),
    "buffer": lambda path: io.BytesIO(path.read_bytes()),
    "pil": Image.open,
    "array": lambda path: PIXELS,
    "tensor": lambda path: torch.from_numpy(PIXELS),
    "datasets_bytes": lambda path: {"bytes": path.read_bytes(), "path": None},
    "datasets_path": lambda path: {"bytes": None, "path": str(path)},
}


@pytest.mark.parametrize("name", FORMS)
def test_as_image_accepts_every_form(tmp_path: Path, name: str) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    item = FORMS[name](tmp_path / "a.png")
    assert list_images(item) == [item]
    assert np.array_equal(as_image(item), PIXELS)


def test_list_images_splits_arrays_and_iterables() -> None:
    assert len(list_images(np.stack([PIXELS] * 3))) == 3
    assert len(list_images(torch.from_numpy(np.stack([PIXELS] * 3)))) == 3
    assert list_images(item for item in ("a", "b")) == ["a", "b"]


BAD: list[tuple[str, Any, str]] = [
    ("none", None, "NoneType is not an image"),
    ("number", 3, "int is not an image"),
    ("object", object(), "object is not an image"),
    ("float_array", np.zeros((8, 8, 3)), r"an array of float64 with shape \(8, 8, 3\) is not an image"),
    ("channels_first", np.zeros((3, 8, 8), np.uint8), r"an array of uint8 with shape \(3, 8, 8\) is not an image"),
    ("empty_array", np.zeros((0, 8, 3), np.uint8), r"an array of uint8 with shape \(0, 8, 3\) is not an image"),
    ("dictionary", {"image": 1}, "a dictionary without bytes and path"),
    ("text_file", io.StringIO("x"), "a file in text mode"),
    ("bad_bytes", b"hello", "not an image"),
    ("no_bytes", b"", "empty image file"),
    ("long_array", np.zeros((1, 900, 3), np.uint8), "image too long"),
]


@pytest.mark.parametrize(("name", "item", "message"), BAD, ids=[row[0] for row in BAD])
def test_as_image_names_the_argument(name: str, item: Any, message: str) -> None:
    with pytest.raises(UserError, match=rf"^images\[2\]: {message}") as caught:
        as_image(item, "images[2]")
    assert "\n" not in str(caught.value)
