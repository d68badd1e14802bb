"""Published region features: hdf5 with its index, and LXMERT's tsv. All files are generated."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from speechclip.common.errors import MissingFileError, UserError
from speechclip.data.region_files import TSV_COLUMNS, read_region_file

IDS = ("COCO_val2014_000000000042", "COCO_train2014_000000000009", "COCO_val2014_000000000007")
ROWS = (2, 0, 1)  # of the images in the hdf5 file
SIZES = ((640.0, 480.0), (200.0, 500.0), (333.0, 250.0))  # width, height
REGIONS, WIDTH = 4, 6


def image(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return features [R, F] and boxes in pixels [R, 4] of an image."""
    random = np.random.default_rng(number)
    corners = np.sort(random.random((REGIONS, 2, 2)), axis=1) * SIZES[number]  # upper left, lower right
    return random.standard_normal((REGIONS, WIDTH)).astype("f4"), corners.reshape(REGIONS, 4).astype("f4")


def check(found: dict, numbers: tuple[int, ...]) -> None:
    """Compare regions with plain arithmetic on :func:`image`."""
    assert list(found) == [IDS[number] for number in numbers]
    for number in numbers:
        features, boxes = image(number)
        regions = found[IDS[number]]
        np.testing.assert_array_equal(regions.features.numpy(), features)
        (width, height), (left, top, right, bottom) = SIZES[number], boxes.T
        expected = np.stack([left / width, top / height, right / width, bottom / height], axis=1)
        np.testing.assert_allclose(regions.boxes.numpy(), expected, rtol=1e-6)
        assert regions.boxes.max() <= 1


# -- hdf5 ------------------------------------------------------------------------------------------------------------


def write_hdf5(folder: Path, **changes: np.ndarray | None) -> Path:
    """Write val_imgfeat.hdf5 and its index. ``changes`` replace data sets; None leaves one out."""
    h5py = pytest.importorskip("h5py")
    arrays = {
        "features": np.zeros((3, REGIONS, WIDTH), "f4"), "boxes": np.zeros((3, REGIONS, 4), "f4"),
        "img_w": np.zeros(3, "i8"), "img_h": np.zeros(3, "i8"),
    }  # fmt: skip
    for number, row in enumerate(ROWS):
        arrays["features"][row], arrays["boxes"][row] = image(number)
        arrays["img_w"][row], arrays["img_h"][row] = SIZES[number]
    with h5py.File(folder / "val_imgfeat.hdf5", "w") as file:
        for name, values in {**arrays, **changes}.items():
            if values is not None:
                file[name] = values
    (folder / "val_imgid2idex.json").write_text(json.dumps(dict(zip(IDS, ROWS))))
    return folder / "val_imgfeat.hdf5"


def test_hdf5_has_the_rows_of_its_index(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path)
    check(dict(read_region_file(path, {*IDS, "other"})), (1, 2, 0))  # in the order of the file
    check(dict(read_region_file(path, {IDS[2]})), (2,))


def test_the_only_index_of_a_folder_fits_any_name(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path)
    (tmp_path / "val_imgid2idex.json").rename(tmp_path / "SpokenCOCO_val_imgid2idex.json")
    check(dict(read_region_file(path, {IDS[0]})), (0,))


def _index(content: str) -> Callable[[Path], None]:
    return lambda path: (path.parent / "val_imgid2idex.json").write_text(content) and None


HDF5 = {
    "no index": (lambda path: (path.parent / "val_imgid2idex.json").unlink(), "val_imgid2idex.json: is missing"),
    "index of lists": (_index('{"a": [1]}'), "val_imgid2idex.json: not a mapping of image ids to rows"),
    "index not json": (_index("{"), "val_imgid2idex.json: "),
    "row outside": (_index(json.dumps({IDS[0]: 3})), f"{IDS[0]} is row 3 of 3 in the index. The files do not fit."),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:900]), "val_imgfeat.hdf5: damaged or not hdf5"),
    "text": (lambda path: path.write_text("no hdf5") and None, "val_imgfeat.hdf5: damaged or not hdf5"),
    "no file": (lambda path: path.unlink(), "val_imgfeat.hdf5: is missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", HDF5)
def test_a_broken_hdf5_file_is_one_line(name: str, tmp_path: Path) -> None:
    damage, message = HDF5[name]
    path = write_hdf5(tmp_path)
    damage(path)
    with pytest.raises((UserError, MissingFileError)) as caught:
        dict(read_region_file(path, set(IDS)))
    assert message in str(caught.value) and "\n" not in str(caught.value)


ARRAYS = {
    "no boxes": ({"boxes": None}, "val_imgfeat.hdf5: lacks boxes."),
    "no sizes": ({"img_h": None, "img_w": None}, "val_imgfeat.hdf5: lacks img_h, img_w."),
    "fewer boxes": ({"boxes": np.zeros((3, 2, 4), "f4")}, "features [3, 4, 6] and boxes [3, 2, 4] do not fit"),
    "size zero": ({"img_w": np.zeros(3)}, "an image of 0x"),
}  # fmt: skip


@pytest.mark.parametrize("name", ARRAYS)
def test_wrong_arrays_of_an_hdf5_file_are_one_line(name: str, tmp_path: Path) -> None:
    changes, message = ARRAYS[name]
    with pytest.raises(UserError) as caught:
        dict(read_region_file(write_hdf5(tmp_path, **changes), set(IDS)))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_hdf5_without_h5py_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    path = tmp_path / "val_imgfeat.hdf5"
    path.write_bytes(b"x")
    with pytest.raises(UserError, match=r"h5py: is missing\. Install it: pip install 'speechclip\[regions\]'\."):
        dict(read_region_file(path, set(IDS)))


# -- tsv -------------------------------------------------------------------------------------------------------------


def tsv_row(number: int) -> dict[str, str]:
    """Return the columns of LXMERT's tsv for an image."""
    features, boxes = image(number)
    coded = {"features": features, "boxes": boxes, "objects_id": np.zeros(REGIONS, "i8")}
    plain = {name: base64.b64encode(values.tobytes()).decode() for name, values in coded.items()}
    width, height = (f"{size:.0f}" for size in SIZES[number])
    return {"img_id": IDS[number], "img_w": width, "img_h": height, "num_boxes": str(REGIONS), **plain}


def write_tsv(folder: Path, **changes: str) -> Path:
    """Write val.tsv. ``changes`` replace columns of the second line."""
    rows = [tsv_row(0), {**tsv_row(1), **changes}, tsv_row(2)]
    lines = ["\t".join(row.get(name, "") for name in TSV_COLUMNS) for row in rows]
    (folder / "val.tsv").write_text("\n".join(lines) + "\n")
    return folder / "val.tsv"


def test_tsv_columns_are_decoded(tmp_path: Path) -> None:
    path = write_tsv(tmp_path)
    check(dict(read_region_file(path, {*IDS, "other"})), (0, 1, 2))
    check(dict(read_region_file(path, {IDS[1]})), (1,))


def test_a_tsv_row_may_have_published_size(tmp_path: Path) -> None:
    features = np.random.default_rng(0).standard_normal((36, 2048)).astype("f4")
    boxes = np.tile(np.array([0, 0, 100, 250], "f4"), (36, 1))
    coded = {name: base64.b64encode(values.tobytes()).decode() for name, values in
             {"features": features, "boxes": boxes}.items()}  # fmt: skip
    ((_, regions),) = read_region_file(write_tsv(tmp_path, num_boxes="36", **coded), {IDS[1]})
    np.testing.assert_array_equal(regions.features.numpy(), features)
    np.testing.assert_allclose(regions.boxes[0].tolist(), [0, 0, 0.5, 0.5])


TSV = {
    "not base64": ({"boxes": "!!!!"}, "val.tsv: line 2: not a row of regions"),
    "cut base64": ({"features": "AAAA"}, "val.tsv: line 2: not a row of regions"),
    "other number": ({"num_boxes": "5"}, "val.tsv: line 2: not a row of regions"),
    "no number": ({"num_boxes": "x"}, "val.tsv: line 2: not a row of regions"),
    "size zero": ({"img_h": "0"}, "val.tsv: line 2: an image of 200x0 pixels"),
    "one more column": ({"features": "AA\tAA"}, "val.tsv: line 2: 11 columns, not 10"),
}  # fmt: skip


@pytest.mark.parametrize("name", TSV)
def test_a_broken_tsv_row_is_one_line(name: str, tmp_path: Path) -> None:
    changes, message = TSV[name]
    path = write_tsv(tmp_path, **changes)
    with pytest.raises(UserError) as caught:
        dict(read_region_file(path, set(IDS)))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_row_that_is_not_wanted_is_skipped(tmp_path: Path) -> None:
    check(dict(read_region_file(write_tsv(tmp_path, boxes="!!!!"), {IDS[0], IDS[2]})), (0, 2))


def test_other_files_are_not_files_of_regions(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"x")
    with pytest.raises(UserError, match=r"a\.npz: not a file of regions"):
        read_region_file(tmp_path / "a.npz", set(IDS))
    (tmp_path / "a.tsv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"a\.tsv: not a tsv file of regions"):
        dict(read_region_file(tmp_path / "a.tsv", set(IDS)))
    with pytest.raises(MissingFileError):
        read_region_file(tmp_path / "none.tsv", set(IDS))
