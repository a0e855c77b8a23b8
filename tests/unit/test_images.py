"""Reading, fitting and finding images: every trap is a tiny file made on the spot."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evoprompt import images
from evoprompt.errors import DataError
from evoprompt.images import (
    FITS,
    MAX_ASPECT,
    MAX_EDGE,
    PAD_COLOUR,
    as_rgb,
    check_images,
    find_images,
    fit_image,
    read_image,
    scan_images,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "preproc"
ORIENTATION = 0x0112


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Random colours: every pixel differs from its neighbours, so a shift or a turn shows."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def first_pixel(path: Path) -> tuple[int, ...]:
    read = read_image(path)
    assert read.mode == "RGB"
    return tuple(np.asarray(read)[0, 0].tolist())


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(extra) + body + chunk(b"IEND", b"")


# Reading


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "tiff", "webp"])
def test_an_image_is_turned_upright_for_every_orientation(tmp_path: Path, orientation: int, kind: str) -> None:
    upright = np.asarray(noise(5, 3))
    # How the sensor stored it, written out from the EXIF standard: which side row 0 and column 0 are.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"lossless": True} if kind == "webp" else {}
    path = saved(Image.fromarray(np.ascontiguousarray(stored)), tmp_path / f"x.{kind}", exif=exif, **options)
    assert np.array_equal(np.asarray(read_image(path)), upright)
    with Image.open(path) as opened:
        assert np.array_equal(np.asarray(as_rgb(opened)), upright)


def test_a_scan_reports_the_size_after_turning(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    saved(noise(5, 3), tmp_path / "x.jpg", exif=exif)
    record = scan_images([tmp_path]).records[0]
    assert (record.width, record.height) == (3, 5)


@pytest.mark.parametrize(("mode", "colour"), [("RGBA", (200, 100, 0, 0)), ("LA", (250, 0))])
def test_full_transparency_shows_mid_grey(tmp_path: Path, mode: str, colour: tuple[int, ...]) -> None:
    assert first_pixel(saved(Image.new(mode, (4, 4), colour), tmp_path / "x.png")) == (128, 128, 128)


def test_half_transparency_mixes_with_mid_grey(tmp_path: Path) -> None:
    mixed = first_pixel(saved(Image.new("RGBA", (4, 4), (255, 0, 128, 128)), tmp_path / "x.png"))
    assert mixed == pytest.approx((192, 64, 128), abs=1)


def test_opaque_alpha_changes_nothing(tmp_path: Path) -> None:
    image = noise(6, 4)
    opaque = image.copy()
    opaque.putalpha(255)
    assert np.array_equal(np.asarray(read_image(saved(opaque, tmp_path / "x.png"))), np.asarray(image))


def test_a_transparent_palette_entry_shows_mid_grey_and_the_others_their_colour(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    read = np.asarray(read_image(saved(image, tmp_path / "x.png", transparency=0)))
    assert read[0].tolist() == [[128, 128, 128], [0, 0, 255]]


def test_a_palette_image_has_its_colours(tmp_path: Path) -> None:
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert first_pixel(saved(image, tmp_path / "x.png")) == (10, 20, 30)


def test_grey_becomes_equal_channels(tmp_path: Path) -> None:
    assert first_pixel(saved(Image.new("L", (4, 4), 77), tmp_path / "x.png")) == (77, 77, 77)


def test_one_bit_becomes_black_and_white(tmp_path: Path) -> None:
    image = Image.new("1", (2, 1), 0)
    image.putpixel((1, 0), 1)
    read = np.asarray(read_image(saved(image, tmp_path / "x.png")))
    assert read[0].tolist() == [[0, 0, 0], [255, 255, 255]]


SIXTEEN = np.array([[0, 128, 129, 257, 32768, 65406, 65535]], dtype=np.uint16)
EIGHT = [0, 0, 1, 1, 128, 254, 255]


@pytest.mark.parametrize("kind", ["png", "tiff", "pgm"])
def test_sixteen_bit_grey_keeps_its_whole_range(tmp_path: Path, kind: str) -> None:
    read = np.asarray(read_image(saved(Image.fromarray(SIXTEEN), tmp_path / f"x.{kind}")))
    assert read[0, :, 0].tolist() == EIGHT
    assert (read == read[..., :1]).all()


def test_sixteen_bit_grey_under_the_older_mode_name_is_the_same() -> None:
    image = Image.fromarray(SIXTEEN.astype(np.int32))
    assert image.mode == "I"
    image.format = "PNG"
    assert np.asarray(as_rgb(image))[0, :, 0].tolist() == EIGHT


def test_a_transparent_sixteen_bit_grey_shows_mid_grey(tmp_path: Path) -> None:
    rows = b"\0" + struct.pack(">HH", 65535, 1000)
    (tmp_path / "x.png").write_bytes(png(2, 1, 16, 0, rows, chunk(b"tRNS", struct.pack(">H", 1000))))
    assert np.asarray(read_image(tmp_path / "x.png"))[0, :, 0].tolist() == [255, 128]


def test_sixteen_bit_colour_keeps_black_and_white(tmp_path: Path) -> None:
    rows = b"\0" + struct.pack(">6H", 0, 0, 0, 65535, 65535, 65535)
    (tmp_path / "x.png").write_bytes(png(2, 1, 16, 2, rows))
    assert np.asarray(read_image(tmp_path / "x.png"))[0].tolist() == [[0, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_grey_without_a_known_white_is_an_error(tmp_path: Path, dtype: type) -> None:
    path = saved(Image.fromarray(np.ones((2, 2), dtype)), tmp_path / "x.tiff")
    with pytest.raises(DataError, match=r"x\.tiff cannot be read \(32-bit grey values have no known range\)"):
        read_image(path)


def test_lab_colour_is_named_in_the_error(tmp_path: Path) -> None:
    path = saved(Image.new("LAB", (4, 4)), tmp_path / "x.tiff")
    with pytest.raises(DataError, match="colour mode LAB is not supported"):
        read_image(path)


@pytest.mark.parametrize(("cmyk", "rgb"), [((0, 0, 0, 0), (255, 255, 255)), ((0, 255, 255, 0), (255, 0, 0))])
def test_a_cmyk_jpeg_is_not_inverted(tmp_path: Path, cmyk: tuple[int, ...], rgb: tuple[int, ...]) -> None:
    path = saved(Image.new("CMYK", (16, 16), cmyk), tmp_path / "x.jpg", quality=100)
    assert first_pixel(path) == pytest.approx(rgb, abs=4)


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    path = saved(frames[0], tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert first_pixel(path) == (250, 0, 0)


def test_the_content_decides_and_not_the_suffix(tmp_path: Path) -> None:
    assert first_pixel(saved(Image.new("RGB", (4, 4), (1, 2, 3)), tmp_path / "x.jpg", format="PNG")) == (1, 2, 3)


def test_postscript_disguised_as_a_photo_reaches_no_decoder(tmp_path: Path) -> None:
    saved(noise(8, 8), tmp_path / "x.jpg", format="EPS")
    with pytest.raises(DataError, match="not recognised as an image"):
        read_image(tmp_path / "x.jpg")


def test_one_pixel_is_an_image(tmp_path: Path) -> None:
    image = read_image(saved(Image.new("RGB", (1, 1), (9, 8, 7)), tmp_path / "x.png"))
    for fit in FITS:
        assert (fit_image(image, fit, 8) == np.array([9, 8, 7])[:, None, None]).all()


# Files that cannot be read


def cut(kind: str, share: float) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        buffer = io.BytesIO()
        noise(64, 64).save(buffer, kind)
        path.write_bytes(buffer.getvalue()[: int(buffer.tell() * share)])

    return write


def bomb(path: Path) -> None:
    path.write_bytes(png(60_000, 60_000, 8, 2, b"\0"))


def progressive_cut(path: Path) -> None:
    buffer = io.BytesIO()
    noise(64, 64).save(buffer, "JPEG", progressive=True)
    path.write_bytes(buffer.getvalue()[: buffer.tell() // 2])


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "half.jpg": (cut("JPEG", 0.5), "truncated"),
    "progressive.jpg": (progressive_cut, "truncated"),
    "nearly.jpg": (cut("JPEG", 0.97), "truncated"),
    "half.png": (cut("PNG", 0.5), "truncated"),
    "half.bmp": (cut("BMP", 0.5), "truncated"),
    "half.gif": (cut("GIF", 0.5), "truncated"),
    "half.tiff": (cut("TIFF", 0.5), "truncated"),
    "half.webp": (cut("WEBP", 0.5), "damaged"),
    "empty.jpg": (Path.touch, "0 bytes"),
    "text.jpg": (lambda path: path.write_text("no image\n" * 50), "not recognised as an image"),
    "phone.heic": (lambda path: path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(200)), "no decoder"),
    "bomb.png": (bomb, "more pixels than Pillow's safety limit"),
    "panorama.png": (lambda path: saved(Image.new("L", (MAX_EDGE + 1, 600)), path), "edges may have 16384"),
    "line.png": (lambda path: saved(Image.new("L", (MAX_ASPECT * 2 + 1, 2)), path), "longer than 32 to 1"),
    "gone.jpg": (lambda path: None, "missing"),
    "folder.jpg": (Path.mkdir, "is a directory"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_an_error_with_its_name_and_reason(tmp_path: Path, name: str) -> None:
    make, reason = BAD[name]
    make(tmp_path / name)
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / name)
    assert f"{tmp_path / name} cannot be read (" in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.filterwarnings("ignore")  # Pillow's remarks on what it finds
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF"])
def test_damage_anywhere_is_read_or_refused_but_never_crashes(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    noise(24, 16).save(buffer, kind)
    outcomes = {"read": 0, "refused": 0}
    for trial in range(120):
        damaged = np.frombuffer(buffer.getvalue(), dtype=np.uint8).copy()
        damaged[rng.integers(0, min(len(damaged), (60, 400, len(damaged))[trial % 3]), 3)] = rng.integers(0, 256, 3)
        (tmp_path / "x").write_bytes(damaged.tobytes())
        try:
            assert read_image(tmp_path / "x").mode == "RGB"
            outcomes["read"] += 1
        except DataError as error:
            assert "cannot be read (" in str(error)
            outcomes["refused"] += 1
    assert outcomes["refused"] > 0


# Fitting


@pytest.mark.parametrize("size", [56, 448])
@pytest.mark.parametrize(("fit", "name"), [("pad", "pad"), ("squash", "squash")])
def test_fits_equal_the_reference_preprocessing_bit_for_bit(fit: str, name: str, size: int) -> None:
    """The outputs were recorded with the CLIP image processor, Pillow backend, after the released models' own steps."""
    with np.load(GOLDEN / "preproc.npz") as golden:
        expected = golden[f"{name}_{size}_u8"]
    assert np.array_equal(fit_image(read_image(GOLDEN / "input_123x77.png"), fit, size)[0], expected)


def test_the_centre_is_cut_out_as_torchvision_does() -> None:
    """Its `CenterCrop` rounds half to even, where the CLIP image processor of the golden files rounds down."""
    image = read_image(GOLDEN / "input_123x77.png")
    with np.load(GOLDEN / "preproc.npz") as golden:
        # 89 px scaled from 123: 16.5 px are before the centre, 16 by either; 715 px: 133.5, and 134 or 133.
        assert np.array_equal(fit_image(image, "crop", 56)[0], golden["centercrop_56_u8"])
        assert np.array_equal(fit_image(image, "crop", 448)[0][:, :, :-1], golden["centercrop_448_u8"][:, :, 1:])


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("shape", [(64, 48), (48, 64), (17, 5), (200, 201), (1, 1), (64, 2), (2, 64)])
def test_every_fit_gives_contiguous_bytes_of_the_asked_shape(fit: str, shape: tuple[int, int]) -> None:
    fitted = fit_image(noise(*shape), fit, 16, 2)
    assert fitted.shape == (2, 3, 16, 16)
    assert fitted.dtype == np.uint8
    assert fitted.flags.c_contiguous
    assert np.array_equal(fitted, fit_image(noise(*shape), fit, 16, 2))


@pytest.mark.parametrize("fit", ["pad", "squash", "crop"])
def test_the_second_view_is_the_mirror_image(fit: str) -> None:
    plain, mirrored = fit_image(noise(31, 20), fit, 16, 2)
    assert np.array_equal(mirrored, plain[:, :, ::-1])
    assert not np.array_equal(mirrored, plain)


@pytest.mark.parametrize(("width", "height", "left", "top"), [(8, 5, 0, 1), (5, 8, 1, 0)])
def test_padding_is_the_mean_colour_with_the_odd_pixel_after_the_image(
    width: int, height: int, left: int, top: int
) -> None:
    image = noise(width, height)
    fitted = fit_image(image, "pad", 8)[0].transpose(1, 2, 0)
    assert np.array_equal(fitted[top : top + height, left : left + width], np.asarray(image))
    outside = np.ones((8, 8), bool)
    outside[top : top + height, left : left + width] = False
    assert (fitted[outside] == PAD_COLOUR).all()


def test_four_tiles_are_the_block_of_two_by_two_around_the_centre() -> None:
    image = noise(101, 75)
    pixels = np.asarray(image).transpose(2, 0, 1)
    x, y, s = 101 // 2, 75 // 2, 20
    expected = [pixels[:, y + dy : y + dy + s, x + dx : x + dx + s] for dy in (-s, 0) for dx in (-s, 0)]
    assert np.array_equal(fit_image(image, "tiles", s, 4), np.stack(expected))


def test_one_tile_is_the_centre_at_native_scale() -> None:
    image = noise(100, 60)
    assert np.array_equal(fit_image(image, "tiles", 20)[0], np.asarray(image).transpose(2, 0, 1)[:, 20:40, 40:60])


@pytest.mark.parametrize("views", range(1, 10))
@pytest.mark.parametrize(("width", "height"), [(90, 41), (41, 90), (40, 40)])
def test_tiles_of_a_large_enough_image_are_different_native_pieces_of_it(views: int, width: int, height: int) -> None:
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    coordinates = Image.fromarray(np.stack([rows, columns, np.zeros_like(rows)], axis=-1))
    tiles = fit_image(coordinates, "tiles", 20, views)
    corners = {(int(tile[0, 0, 0]), int(tile[1, 0, 0])) for tile in tiles}
    assert len(corners) == views
    for tile in tiles:
        assert np.array_equal(tile[0] - tile[0, 0, 0], np.repeat(np.arange(20)[:, None], 20, axis=1))
        assert np.array_equal(tile[1] - tile[1, 0, 0], np.repeat(np.arange(20)[None], 20, axis=0))


def test_two_tiles_lie_along_the_longer_edge() -> None:
    wide = fit_image(noise(90, 41), "tiles", 20, 2)
    pixels = np.asarray(noise(90, 41)).transpose(2, 0, 1)
    assert np.array_equal(np.concatenate([*wide], axis=2), pixels[:, 10:30, 25:65])
    tall = fit_image(noise(90, 41).transpose(Image.Transpose.TRANSPOSE), "tiles", 20, 2)
    assert np.array_equal(tall, wide.transpose(0, 1, 3, 2))


def test_a_small_image_is_enlarged_until_two_tiles_fit_its_shorter_edge() -> None:
    image = noise(30, 10)
    enlarged = np.asarray(image.resize((120, 40), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    blocks = fit_image(image, "tiles", 20, 4)
    assert np.array_equal(np.concatenate([blocks[0], blocks[1]], axis=2), enlarged[:, :20, 40:80])
    assert np.array_equal(np.concatenate([blocks[2], blocks[3]], axis=2), enlarged[:, 20:, 40:80])


@pytest.mark.parametrize(
    ("fit", "size", "views", "message"),
    [
        ("fill", 8, 1, "fit 'fill' is unknown; accepted are pad, squash, crop, tiles"),
        ("pad", 0, 1, "both must be at least 1"),
        ("tiles", 8, 0, "both must be at least 1"),
        ("crop", 8, 3, "views 3: fit 'crop' has 2"),
    ],
)
def test_impossible_fits_are_refused(fit: str, size: int, views: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit_image(noise(9, 9), fit, size, views)


def test_an_unconverted_image_is_refused() -> None:
    with pytest.raises(DataError, match="mode RGBA cannot be fitted"):
        fit_image(Image.new("RGBA", (4, 4)), "pad", 4)


def test_an_image_as_long_as_a_line_is_refused() -> None:
    with pytest.raises(DataError, match="1000 x 1 pixels, longer than 32 to 1"):
        fit_image(Image.new("RGB", (1000, 1)), "crop", 448)


@pytest.mark.parametrize("fit", FITS)
def test_the_most_extreme_accepted_shape_fits(fit: str) -> None:
    assert fit_image(Image.new("RGB", (MAX_ASPECT, 1)), fit, 56).shape == (1, 3, 56, 56)


# Finding


@pytest.mark.parametrize(("limit", "message"), [(20, ""), (10, "more pixels than Pillow's safety limit")])
def test_a_large_image_is_read_without_a_warning_or_refused(limit: int, message: str, tmp_path: Path) -> None:
    Image.new("RGB", (6, 5)).save(tmp_path / "large.png")  # beyond the limit, and for 10 beyond twice the limit
    text = f"from PIL import Image; Image.MAX_IMAGE_PIXELS = {limit}; from evoprompt.images import check_images; "
    text += "from pathlib import Path; print(check_images([('large.png', Path('large.png'))])[1])"
    environment = {**os.environ, "PYTHONPATH": str(Path(images.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stderr == "" and done.stdout.strip() == (f"[('large.png', \"{message}\")]" if message else "[]")


def test_a_folder_is_searched_to_any_depth_in_the_order_of_names(tmp_path: Path) -> None:
    for seed, name in enumerate(["b.png", "a/z.PNG", "a/b/c.jpg", "c.webp"]):
        saved(noise(8, 8, seed), tmp_path / name)
    for name in ["notes.txt", ".hidden.png", ".thumbnails/x.png"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("not looked at")
    images = scan_images([tmp_path])
    assert [record.name for record in images.records] == ["a/b/c.jpg", "a/z.PNG", "b.png", "c.webp"]
    assert find_images([tmp_path]) == [record.path for record in images.records]


def test_a_link_back_up_is_followed_only_once(tmp_path: Path) -> None:
    saved(noise(8, 8), tmp_path / "set" / "a.png")
    os.symlink(tmp_path / "set", tmp_path / "set" / "again")
    assert [record.name for record in scan_images([tmp_path / "set"]).records] == ["a.png"]


def test_a_linked_folder_is_searched(tmp_path: Path) -> None:
    saved(noise(8, 8), tmp_path / "disk" / "a.png")
    (tmp_path / "set").mkdir()
    os.symlink(tmp_path / "disk", tmp_path / "set" / "linked")
    assert [record.name for record in scan_images([tmp_path / "set"]).records] == ["linked/a.png"]


def test_folders_files_and_csv_files_may_be_mixed(tmp_path: Path) -> None:
    saved(noise(8, 8, 1), tmp_path / "folder" / "a.png")
    saved(noise(8, 8, 2), tmp_path / "single.png")
    saved(noise(8, 8, 3), tmp_path / "lists" / "images" / "c.png")
    (tmp_path / "lists" / "list.csv").write_text("mos,file_name\nnot a number,c.png\n")
    sources = [tmp_path / "folder", tmp_path / "single.png", tmp_path / "lists" / "list.csv"]
    images = scan_images(sources)
    assert [record.name for record in images.records] == ["a.png", "single.png", "c.png"]
    assert images.sources == tuple(str(source) for source in sources)
    assert len(images) == 3


def test_equal_names_of_different_images_are_told_apart(tmp_path: Path) -> None:
    saved(noise(8, 8, 1), tmp_path / "x" / "a.png")
    saved(noise(8, 8, 2), tmp_path / "y" / "a.png")
    names = [record.name for record in scan_images([tmp_path / "x", tmp_path / "y"]).records]
    assert names == [(tmp_path / folder / "a.png").as_posix() for folder in "xy"]


def test_the_same_content_counts_once_and_the_first_name_stays(tmp_path: Path) -> None:
    content = saved(noise(8, 8), tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(content)
    images = scan_images([tmp_path, tmp_path])
    assert [record.name for record in images.records] == ["a.png"]
    assert images.duplicates == 3


def test_the_fingerprint_is_that_of_the_contents(tmp_path: Path) -> None:
    one, two = saved(noise(8, 8, 1), tmp_path / "x" / "1.png"), saved(noise(8, 8, 2), tmp_path / "x" / "2.png")
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "later.png").write_bytes(one.read_bytes())
    (tmp_path / "y" / "first.png").write_bytes(two.read_bytes())
    print_x = scan_images([tmp_path / "x"]).fingerprint()
    assert print_x == scan_images([tmp_path / "y"]).fingerprint()
    assert print_x != scan_images([one]).fingerprint()
    assert len(print_x) == 12 and set(print_x) <= set("0123456789abcdef")


def test_all_unreadable_files_are_named_at_once(tmp_path: Path) -> None:
    saved(noise(64, 64), tmp_path / "fine.png")
    for name in ("half.jpg", "empty.jpg", "phone.heic"):
        BAD[name][0](tmp_path / name)
    with pytest.raises(DataError) as caught:
        scan_images([tmp_path])
    assert str(caught.value) == (
        "3 of 4 images cannot be read: empty.jpg (0 bytes); half.jpg (truncated); phone.heic (no decoder). "
        "Remove them or add --skip-unreadable."
    )


def test_skipped_files_are_recorded(tmp_path: Path) -> None:
    saved(noise(8, 8), tmp_path / "fine.png")
    (tmp_path / "empty.jpg").touch()
    images = scan_images([tmp_path], skip_unreadable=True)
    assert [record.name for record in images.records] == ["fine.png"]
    assert images.skipped == (("empty.jpg", "0 bytes"),)


def test_skipping_everything_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(DataError, match=r"none of the 1 images can be read: empty\.jpg \(0 bytes\)"):
        scan_images([tmp_path], skip_unreadable=True)


def test_an_image_a_list_names_but_that_is_not_there_is_reported_as_missing(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("image\ngone.png\n")
    with pytest.raises(DataError, match=r"1 of 1 images cannot be read: gone\.png \(missing\)"):
        scan_images([tmp_path / "list.csv"])


def test_a_folder_without_images_names_the_known_kinds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"holds no images; known kinds are \.jpg \.jpeg .*\.pgm\. Name another folder"):
        scan_images([tmp_path])


def test_all_sources_that_do_not_exist_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such folder, image or table: .*one; .*two\. Name folders"):
        scan_images([tmp_path / "one", tmp_path, tmp_path / "two"])


def test_no_source_at_all_is_an_error() -> None:
    with pytest.raises(DataError, match="no image source was named"):
        scan_images([])


def test_progress_counts_every_file(tmp_path: Path) -> None:
    for seed in range(5):
        saved(noise(8, 8, seed), tmp_path / f"{seed}.png")
    (tmp_path / "empty.png").touch()
    calls: list[tuple[int, int]] = []
    scan_images([tmp_path], skip_unreadable=True, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 6) for done in range(1, 7)]


def test_progress_counts_every_checked_file(tmp_path: Path) -> None:
    paths = [saved(noise(8, 8, seed), tmp_path / f"{seed}.png") for seed in range(3)]
    calls: list[tuple[int, int]] = []
    check_images([(path.name, path) for path in paths], lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_checking_keeps_the_order_and_hashes_the_bytes(tmp_path: Path) -> None:
    paths = [saved(noise(8 + seed, 8, seed), tmp_path / f"{9 - seed}.png") for seed in range(6)]
    records, problems = check_images([(path.name, path) for path in paths])
    assert [record.path for record in records] == paths
    assert [record.width for record in records] == [8 + seed for seed in range(6)]
    assert len({record.sha256 for record in records}) == 6
    assert problems == []
