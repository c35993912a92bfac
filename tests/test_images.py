"""Pictures and boxes: every common form comes in, everything else is refused by name; the input is the formula's."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from dpm_edge.errors import ImageError
from dpm_edge.images import (
    _INTERPOLATION,
    as_bgr,
    clip_boxes,
    decode_image,
    find_images,
    path_text,
    preprocess,
    read_image,
    resize,
    to_network_size,
)
from dpm_edge.spec import Preprocessing

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (12, 10, 3), np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    cv2.imwrite(str(tmp_path / "colour.png"), COLOUR)
    cv2.imwrite(str(tmp_path / "grey.png"), COLOUR[:, :, 0])
    cv2.imwrite(str(tmp_path / "alpha.png"), np.dstack([COLOUR, np.full((12, 10), 128, np.uint8)]))
    cv2.imwrite(str(tmp_path / "deep.png"), COLOUR.astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "deep_grey.png"), COLOUR[:, :, 1].astype(np.uint16) * 257)
    return tmp_path


@pytest.mark.parametrize("name", ["colour", "alpha", "deep"])
def test_colour_alpha_and_16_bit_pictures_are_the_same_picture(folder: Path, name: str) -> None:
    image = read_image(folder / f"{name}.png")
    assert image.dtype == np.uint8 and image.flags.c_contiguous
    np.testing.assert_array_equal(image, COLOUR)


@pytest.mark.parametrize(("name", "channel"), [("grey", 0), ("deep_grey", 1)])
def test_grey_pictures_are_repeated(folder: Path, name: str, channel: int) -> None:
    image = read_image(folder / f"{name}.png")
    np.testing.assert_array_equal(image, np.repeat(COLOUR[:, :, channel : channel + 1], 3, axis=2))


# Where each EXIF orientation puts the upright picture's first row and column (EXIF 2.32, table of tag 0x0112): the
# stored picture is the upright one turned by this.
STORED = {
    1: lambda up: up,
    2: lambda up: up[:, ::-1],
    3: lambda up: up[::-1, ::-1],
    4: lambda up: up[::-1],
    5: lambda up: up.swapaxes(0, 1),
    6: lambda up: np.rot90(up, 1),
    7: lambda up: up[::-1, ::-1].swapaxes(0, 1),
    8: lambda up: np.rot90(up, -1),
}


def with_orientation(jpeg: bytes, orientation: int) -> bytes:
    """A JPEG with an EXIF block that holds nothing but its orientation."""
    tiff = b"MM\0\x2a\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)
    block = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg[2:]


@pytest.mark.parametrize("orientation", STORED)
def test_turned_picture_is_set_upright(tmp_path: Path, orientation: int) -> None:
    upright = np.zeros((64, 32, 3), np.uint8)
    upright[:32, :16], upright[:32, 16:], upright[32:, :16] = (200, 30, 30), (30, 200, 30), (30, 30, 200)
    stored = np.ascontiguousarray(STORED[orientation](upright))
    jpeg = cv2.imencode(".jpg", stored, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    path = tmp_path / "turned.jpg"
    path.write_bytes(with_orientation(jpeg, orientation))
    image = read_image(path)
    assert image.shape == (64, 32, 3)
    assert np.abs(image.astype(int) - upright).mean() < 6
    np.testing.assert_array_equal(image, cv2.imread(str(path)))


def test_grey_turned_picture_is_set_upright_too() -> None:
    grey = np.zeros((48, 16), np.uint8)
    grey[:24] = 200
    jpeg = cv2.imencode(".jpg", np.ascontiguousarray(np.rot90(grey, 1)), [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    image = decode_image(with_orientation(jpeg, 6))
    assert image.shape == (48, 16, 3) and image[:20].min() > 180 and image[28:].max() < 20


def test_folder_that_may_not_be_read_is_named_and_the_rest_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "private").mkdir()
    real = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("private"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert len(find_images(folder)) == 5
    assert capsys.readouterr().err == f"skipped folder {folder / 'private'}: Permission denied\n"
    with pytest.raises(ImageError, match="private: Permission denied"):
        find_images(folder / "private")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can become a user without rights")
def test_folder_without_rights_is_named_to_a_real_user(tmp_path: Path) -> None:
    (tmp_path / "crops" / "private").mkdir(parents=True)
    (tmp_path / "crops" / "private").chmod(0o700)
    cv2.imwrite(str(tmp_path / "crops" / "a.png"), COLOUR)
    for above in (tmp_path, *[one for one in tmp_path.parents if len(one.parts) > 2]):
        above.chmod(0o755)
    script = f"""
import os
from pathlib import Path
from dpm_edge.images import find_images
os.setgid(65534); os.setuid(65534)
print([path.name for path in find_images(Path({str(tmp_path / "crops")!r}))])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "['a.png']\n", done.stderr
    assert "private: Permission denied" in done.stderr


def test_name_that_is_not_utf_8_is_found_read_and_written_as_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / name).write_bytes(cv2.imencode(".png", COLOUR)[1].tobytes())
    (path,) = find_images(tmp_path)
    np.testing.assert_array_equal(read_image(path), COLOUR)
    assert path_text(path) == f"{tmp_path}/caf\\xe9.png"
    assert path_text(Path("düne.png")) == "düne.png"


def test_truncated_jpeg_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    cv2.imwrite(str(path), RNG.integers(0, 256, (200, 100, 3), np.uint8))
    read_image(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ImageError, match=r"a\.jpg.*ends too early \(3000 bytes\)"):
        read_image(path)


@pytest.mark.parametrize(("content", "words"), [(b"", "empty"), (b"GIF? no", "not a picture"), (b"\x80\x04.", "not a")])
def test_what_is_no_picture_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ImageError, match=words):
        read_image(tmp_path / "x.png")


def test_missing_file_and_missing_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        read_image(tmp_path / "no.png")
    with pytest.raises(ImageError, match="got nothing"):
        find_images(tmp_path / "no")
    with pytest.raises(ImageError, match="got none"):
        find_images(tmp_path)


def test_pictures_below_a_folder_are_found_in_order(folder: Path) -> None:
    (folder / "z").mkdir()
    cv2.imwrite(str(folder / "z" / "LAST.JPG"), COLOUR)
    (folder / "notes.txt").write_text("no picture")
    names = [p.name for p in find_images(folder)]
    assert names == ["alpha.png", "colour.png", "deep.png", "deep_grey.png", "grey.png", "LAST.JPG"]


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 5, 2), np.uint8),
        np.zeros((1, 5, 5, 3), np.uint8),
        np.zeros(5, np.uint8),
        np.zeros((5, 5, 3), np.float32),
        np.zeros((5, 5, 3), np.int32),
        [[1, 2], [3, 4]],
    ],
    ids=["empty", "two channels", "batch", "line", "float", "int32", "list"],
)
def test_arrays_that_are_no_pictures_are_refused(array: object) -> None:
    with pytest.raises(ImageError, match="the door's frame"):
        as_bgr(array, what="the door's frame")  # type: ignore[arg-type]


def test_rgb_is_turned_and_unknown_orders_are_refused() -> None:
    np.testing.assert_array_equal(as_bgr(COLOUR[:, :, ::-1], color="rgb"), COLOUR)
    with pytest.raises(ImageError, match="'hsv'"):
        as_bgr(COLOUR, color="hsv")


def test_boxes_are_rounded_outward_and_clipped() -> None:
    boxes = [[1.2, 2.7, 5.1, 6.0], [-4, -4, 3, 3], [8, 8, 99, 99], [0, 0, 10, 12]]
    whole, unusable = clip_boxes(np.array(boxes), (12, 10, 3))
    assert whole.tolist() == [[1, 2, 6, 6], [0, 0, 3, 3], [8, 8, 10, 12], [0, 0, 10, 12]]
    assert whole.dtype == np.int64 and unusable == []


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ([np.nan, 0, 5, 5], "not finite"),
        ([0, 0, np.inf, 5], "not finite"),
        ([3, 3, 3, 8], "empty"),
        ([5, 5, 2, 8], "empty"),
        ([10, 0, 15, 5], "outside the frame of 10×12"),
        ([-9, -9, 0, 0], "outside"),
        ([0.1, 0.2, 0.5, 0.9], "Multiply x by 10 and y by 12"),
    ],
)
def test_boxes_that_cannot_be_used_are_reported_by_row(box: list[float], reason: str) -> None:
    whole, unusable = clip_boxes(np.array([[0, 0, 2, 2], box], float), (12, 10, 3))
    assert [row for row, _ in unusable] == [1] and reason in unusable[0][1]
    assert whole[1].tolist() == [0, 0, 0, 0]


def test_no_boxes_and_wrong_shapes() -> None:
    assert clip_boxes(np.zeros((0, 4)), (5, 5, 3))[0].shape == (0, 4)
    with pytest.raises(ImageError, match=r"\(1, 5\)"):
        clip_boxes(np.zeros((1, 5)), (5, 5, 3))


@pytest.mark.parametrize("boxes", [[[1, 2, 3], [1, 2, 3, 4]], [["a", 1, 2, 3]], [None], "here"])
def test_boxes_that_are_no_numbers_are_refused(boxes: object) -> None:
    with pytest.raises(ImageError, match=r"expected \(N, 4\) boxes in pixels, got"):
        clip_boxes(boxes, (5, 5, 3))  # type: ignore[arg-type]


def test_affine_is_the_normalisation_worked_by_hand() -> None:
    """Red 51: 51/255 = 0.2, (0.2 − 0.1)/0.4 = 0.25; green 204: (0.8 − 0.2)/0.5 = 1.2; blue 0: −0.3/0.6 = −0.5."""
    scale, shift = Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)).affine()
    values = [s * x + b for s, x, b in zip(scale, (51, 204, 0), shift)]
    np.testing.assert_allclose(values, [0.25, 1.2, -0.5], rtol=1e-15)


def test_affine_is_float64s_formula_for_every_byte() -> None:
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    scale, shift = np.array(Preprocessing(mean=mean, std=std).affine())
    grey = np.arange(256, dtype=np.float64)[:, None]
    np.testing.assert_allclose(scale * grey + shift, (grey / 255 - mean) / std, rtol=0, atol=1e-14)


@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_resize_gives_opencvs_resize_in_the_networks_channel_order(color: str) -> None:
    image = RNG.integers(0, 256, (50, 21, 3), np.uint8)
    wanted = cv2.resize(image, (16, 32), interpolation=cv2.INTER_AREA)
    got = resize(image, Preprocessing(height=32, width=16, color=color, interpolation="area"))
    np.testing.assert_array_equal(got, wanted[:, :, ::-1] if color == "rgb" else wanted)


@pytest.mark.parametrize("color", ["rgb", "bgr"])
@pytest.mark.parametrize("interpolation", ["bilinear", "area", "bicubic"])
def test_input_is_the_formulas(color: str, interpolation: str) -> None:
    pre = Preprocessing(
        height=32, width=16, color=color, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), interpolation=interpolation
    )
    images = [RNG.integers(0, 256, (50, 21, 3), np.uint8), RNG.integers(0, 256, (9, 70, 3), np.uint8)]
    got = preprocess(images, pre)
    flag = {"bilinear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA, "bicubic": cv2.INTER_CUBIC}[interpolation]
    assert _INTERPOLATION[interpolation] == flag
    for row, image in enumerate(images):
        small = cv2.resize(image, (16, 32), interpolation=flag).astype(np.float64)
        small = small[:, :, ::-1] if color == "rgb" else small
        wanted = (small / 255 - [0.1, 0.2, 0.3]) / [0.4, 0.5, 0.6]
        np.testing.assert_allclose(got[row], wanted.transpose(2, 0, 1), atol=1e-5)
    assert got.dtype == np.float32 and got.flags.c_contiguous


@pytest.mark.parametrize("color", ["rgb", "bgr"])
@pytest.mark.parametrize("interpolation", sorted(_INTERPOLATION))
def test_a_crop_brought_to_the_networks_size_beforehand_becomes_the_same_input(color: str, interpolation: str) -> None:
    pre = Preprocessing(height=32, width=16, color=color, interpolation=interpolation)
    for shape in ((12, 10, 3), (70, 33, 3), (32, 16, 3)):
        crop = RNG.integers(0, 256, shape, np.uint8)
        np.testing.assert_array_equal(preprocess([to_network_size(crop, pre)], pre), preprocess([crop], pre))


def test_input_is_written_into_a_given_buffer() -> None:
    pre = Preprocessing(height=32, width=16)
    buffer = np.full((1, 3, 32, 16), np.nan, np.float32)
    assert preprocess([COLOUR], pre, out=buffer) is buffer
    np.testing.assert_array_equal(buffer, preprocess([COLOUR], pre))
    with pytest.raises(ImageError, match=r"expected out of shape \(2, 3, 32, 16\), got"):
        preprocess([COLOUR, COLOUR], pre, out=buffer)
