"""Extensions of FITS files, their companions, and blemishes of headers."""

import bz2
import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from numpy.typing import NDArray

from sublens.errors import ImageError
from sublens.images import fits_image, formats, wcs
from sublens.images.formats import NO_FILES, CompanionFiles, ImageSelector
from sublens.images.listing import list_images
from sublens.images.pixels import NO_COMPANIONS, Image, RawImage
from sublens.images.reader import Reader

LIGHT = np.random.default_rng(0).poisson(30, (24, 24)).astype(np.float32)
BAD = np.zeros((24, 24), np.int32)
BAD[3, 4:7] = 1


def save(folder: Path, names: str, **planes: NDArray[np.generic]) -> Path:
    """A FITS file of extensions with these names, all LIGHT unless others are given."""
    hdus = [fits.ImageHDU(planes.get(name, LIGHT), name=name.rstrip("0123456789")) for name in names.split()]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(folder / "a.fits")
    return folder / "a.fits"


def read(path: Path, hdu: str | None = None) -> RawImage:
    return fits_image.read_image(path, hdu)


def masked(path: Path) -> NDArray[np.bool_]:
    mask = read(path).mask
    assert mask is not None
    return mask


@pytest.mark.parametrize(
    ("names", "note"),
    [
        ("MASK DATA NOISE_MAP PSF", "image: DATA, mask: MASK, noise: NOISE_MAP, PSF: PSF"),
        ("WHT SCI", "image: SCI, weight: WHT"),
        ("SCI ERR CON WHT", "image: SCI, noise: ERR, weight: WHT"),
        ("PREVIEW THING", "image: THING"),
        ("INPUT MODEL RESIDUAL", "image: INPUT"),
        ("NIR_Y_FLUX NIR_Y_RMS VIS_FLUX VIS_PSF VIS_RMS", "image: VIS_FLUX, PSF: VIS_PSF, noise: VIS_RMS"),
        ("DES_G DES_G_RMS VIS VIS_RMS", "image: VIS, noise: VIS_RMS"),
    ],
)
def test_the_extension_with_the_sky_is_chosen_and_named(tmp_path: Path, names: str, note: str) -> None:
    sky = note.removeprefix("image: ").split(",")[0]
    raw = read(save(tmp_path, names, **{sky: LIGHT + 1}))
    assert np.array_equal(raw.pixels, LIGHT + 1)
    assert raw.notes[0] == note


@pytest.mark.parametrize("names", ["G R I Z", "SCI1 SCI2", "NIR_Y_FLUX NIR_J_FLUX", "MASK PSF"])
def test_where_several_extensions_may_be_meant_they_are_listed(tmp_path: Path, names: str) -> None:
    first = names.split()[0].rstrip("1")
    with pytest.raises(ImageError, match=rf"may be the image; needs one of 1: {first}, 2: .* with --hdu") as caught:
        read(save(tmp_path, names))
    assert not caught.value.path


def test_an_image_in_the_primary_extension_comes_before_others(tmp_path: Path) -> None:
    fits.HDUList([fits.PrimaryHDU(LIGHT), fits.ImageHDU(LIGHT + 1)]).writeto(tmp_path / "a.fits")
    assert read(tmp_path / "a.fits").notes == ("image: PRIMARY",)


def test_a_name_that_two_extensions_have_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, "SCI1 ERR SCI2")
    with pytest.raises(ImageError, match="has 2 extensions called SCI; needs one of 1: SCI, 3: SCI"):
        read(path, "SCI")
    assert read(path, "3").notes == ("image: SCI, noise: ERR",)


def noise(value: float) -> NDArray[np.generic]:
    return np.where(BAD, value, 2).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "plane"),
    [
        *(("ERR", noise(value)) for value in (0, np.nan, 1e8, -1)),
        ("VARIANCE", noise(1e16)),
        ("WHT", noise(0)),
        ("DQ", BAD * 64),
        ("MASK", BAD.astype(float)),
    ],
)
def test_companions_mark_missing_pixels(tmp_path: Path, name: str, plane: NDArray[np.generic]) -> None:
    assert np.array_equal(masked(save(tmp_path, f"SCI {name}", **{name: plane})), BAD)


def test_the_noise_of_another_band_or_size_marks_nothing(tmp_path: Path) -> None:
    planes = {"VIS_FLUX": LIGHT, "NIR_RMS": noise(0), "VIS_RMS": noise(0)[:20]}
    assert read(save(tmp_path, " ".join(planes), **planes)).mask is None


@pytest.mark.parametrize(("name", "plane"), [("MASK", 1 - BAD), ("WHT", np.zeros((24, 24)))])
def test_a_companion_that_marks_most_pixels_is_no_mask_and_a_note_says_so(
    tmp_path: Path, name: str, plane: NDArray[np.generic]
) -> None:
    raw = read(save(tmp_path, f"SCI {name}", **{name: plane}))
    assert raw.mask is None
    assert raw.notes[-1].startswith(f"{name} marks ")


def test_only_the_bits_that_mean_so_mark_pixels_of_jwst_and_rubin(tmp_path: Path) -> None:
    path = save(tmp_path, "SCI DQ", DQ=BAD + 4)
    fits.setval(path, "TELESCOP", value="JWST")
    assert np.array_equal(masked(path), BAD)
    path.unlink()
    path = save(tmp_path, "IMAGE MASK", MASK=8 * BAD + 32)
    for key, plane in (("MP_CR", 3), ("MP_EDGE", 5)):
        fits.setval(path, key, value=plane, ext=2)
    assert np.array_equal(masked(path), BAD)


@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
def test_blank_pixels_are_missing(tmp_path: Path, dtype: type[np.generic]) -> None:
    hdu = fits.PrimaryHDU(np.where(BAD, 7, LIGHT + 100).astype(dtype))
    hdu.header["BLANK"] = 7 - (32768 if dtype is np.uint16 else 0)
    hdu.writeto(tmp_path / "a.fits")
    assert np.array_equal(np.isnan(read(tmp_path / "a.fits").pixels), BAD)


def test_asinh_pixels_of_pan_starrs_are_made_linear(tmp_path: Path) -> None:
    hdu = fits.PrimaryHDU(np.arcsinh((LIGHT - 10) / 2 / 0.5) * 2.5 / np.log(10))
    hdu.header["BOFFSET"], hdu.header["BSOFTEN"] = 10, 0.5
    hdu.writeto(tmp_path / "a.fits")
    assert formats.read(tmp_path / "a.fits").pixels == pytest.approx(LIGHT, rel=1e-5)


BLEMISHES = {
    "a degree sign": lambda data: data.replace(b"'x       '", b"'\xb0C      '"),
    "a newline": lambda data: data.replace(b"'x       '", b"'x\n      '"),
    "zeros after END": lambda data: data.replace(b" " * 1000, bytes(1000)),
    "no padding at the end": lambda data: data[: 2880 + LIGHT.nbytes],
    "T in another column": lambda data: data.replace(b"SIMPLE  =                    T", b"SIMPLE  = T" + b" " * 19),
}


@pytest.mark.parametrize("blemish", BLEMISHES)
def test_a_blemish_in_a_header_costs_nothing(tmp_path: Path, blemish: str) -> None:
    hdu = fits.PrimaryHDU(LIGHT)
    hdu.header["AUTHOR"] = "x"
    hdu.header.update({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 150.0, "CRVAL2": 2.0})
    hdu.header.update({"CRPIX1": 12.5, "CRPIX2": 12.5, "CDELT1": -1e-5, "CDELT2": 1e-5})
    hdu.writeto(tmp_path / "a.fits")
    plain = (tmp_path / "a.fits").read_bytes()
    data = BLEMISHES[blemish](plain)
    assert data != plain
    (tmp_path / "a.fits").write_bytes(data)
    raw = read(tmp_path / "a.fits")
    assert np.array_equal(raw.pixels, LIGHT)
    assert raw.wcs == pytest.approx((0.036, 150, 2))


@pytest.mark.parametrize("name", ["a.fits.bz2", "a.fits", "a.fits.gz"])
@pytest.mark.parametrize("pack", [bz2.compress, gzip.compress, bytes])
def test_packed_files_are_read_whatever_their_ending(tmp_path: Path, name: str, pack: type[bytes]) -> None:
    data = save(tmp_path, "SCI").read_bytes()
    (tmp_path / name).write_bytes(pack(data))
    assert np.array_equal(formats.read(tmp_path / name).pixels, LIGHT)


def test_a_packed_file_that_grows_too_much_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.fits.bz2").write_bytes(bz2.compress(bytes(2**25)))
    with pytest.raises(ImageError, match="grows more than 200-fold"):
        formats.read(tmp_path / "a.fits.bz2")


def test_a_flipped_image_has_its_first_row_on_top(tmp_path: Path) -> None:
    with Reader(ImageSelector(flip_y=True)) as reader:
        (result,) = reader.read([save(tmp_path, "SCI")])
    assert isinstance(result.image, Image)
    assert np.array_equal(result.image.pixels, LIGHT[::-1])


def test_real_files_open_with_their_noise_psf_and_mask(real_data: Path) -> None:
    paths = sorted((real_data / "slacs").glob("*.fits"))
    assert len(paths) == 26
    for path in paths:
        raw = read(path)
        assert raw.notes[:2] == ("image: SCI, noise: ERR, PSF: PSF", "pixel scale 0.05 arcsec from PIXSCALE")
        assert np.array_equal(masked(path), fits.getdata(path, "ERR") >= 1e8)
    (euclid,) = (real_data / "euclid_q1").glob("*_original.fits")
    assert read(euclid).notes == ("image: VIS_FLUX, PSF: VIS_PSF, noise: VIS_RMS",)


def test_files_beside_an_image_tell_its_noise_psf_and_scale(tmp_path: Path) -> None:
    light = np.random.default_rng(0).random((30, 30))
    noise = np.full((30, 30), 0.1)
    noise[3, 4] = 1e8
    for name, pixels in (("data", light), ("noise_map", noise), ("psf", np.ones((5, 5)))):
        fits.PrimaryHDU(pixels).writeto(tmp_path / f"{name}.fits")
    (tmp_path / "info.json").write_text('{"pixel_scale": 0.07, "slope": NaN}')
    raw = fits_image.read_image(tmp_path / "data.fits", None)
    assert raw.notes == ("noise: noise_map.fits", "PSF: psf.fits", "pixel scale 0.07 arcsec from info.json")
    assert raw.wcs[0] == 0.07
    assert raw.mask is not None
    assert np.argwhere(raw.mask).tolist() == [[3, 4]]
    assert [path.name for path in list_images([tmp_path]) if isinstance(path, Path)] == ["data.fits"]


@pytest.mark.parametrize(
    "text", ["[1]", '{"pixel_scale": true}', '{"pixel_scale": -1}', '{"pixel_scale": "0.05"}', "{"]
)
def test_a_file_beside_an_image_that_tells_nothing_is_not_used(tmp_path: Path, text: str) -> None:
    fits.PrimaryHDU(np.random.default_rng(0).random((30, 30))).writeto(tmp_path / "data.fits")
    (tmp_path / "noise_map.fits").write_bytes(b"nothing")
    (tmp_path / "info.json").write_text(text)
    raw = fits_image.read_image(tmp_path / "data.fits", None)
    assert raw.notes == ("noise_map.fits cannot be read, so it was not used",)
    assert raw.wcs[0] is None


def test_the_lens_with_a_known_subhalo_opens_with_no_option(real_data: Path) -> None:
    raw = fits_image.read_image(real_data / "slacs0946+1006" / "data.fits", None)
    assert raw.notes == ("noise: noise_map.fits", "PSF: psf.fits", "pixel scale 0.05 arcsec from info.json")


@pytest.mark.parametrize("shape", [(1, 30, 30), (2, 30, 30)])
def test_noise_of_the_shape_of_a_cube_marks_the_pixels_of_its_plane(tmp_path: Path, shape: tuple[int, ...]) -> None:
    light, noise = np.random.default_rng(0).random(shape), np.ones(shape)
    noise[-1, 3, 4] = 0
    hdus = [fits.ImageHDU(light, name="SCI"), fits.ImageHDU(noise, name="ERR")]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(tmp_path / "a.fits")
    raw = fits_image.read_image(tmp_path / "a.fits", None, str(shape[0] - 1))
    assert raw.mask is not None
    assert np.argwhere(raw.mask).tolist() == [[3, 4]]


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "i8", "f4", "f8"])
def test_a_plain_file_is_read_as_astropy_reads_it(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "a.fits"
    fits.PrimaryHDU(np.arange(35).reshape(5, 7).astype(dtype)).writeto(path)
    with path.open("rb") as file, fits.open(path) as hdus:
        plain = wcs.plain_hdu(file)
        assert plain is not None
        assert np.array_equal(plain.data, hdus[0].data)
        assert plain.data.dtype == hdus[0].data.dtype
        assert plain.header == dict(hdus[0].header)


@pytest.mark.parametrize("change", ["scaled", "blank", "cube", "named", "extension", "cut off", "longer"])
def test_a_file_that_is_not_plain_is_left_to_astropy(change: str) -> None:
    pixels = np.ones((2, 5, 7) if change == "cube" else (5, 7), "i2")
    hdus = fits.HDUList([fits.PrimaryHDU(pixels)])
    hdus[0].header.update(
        {"scaled": {"BSCALE": 2.0}, "blank": {"BLANK": 1}, "named": {"EXTNAME": "ERR"}}.get(change, {})
    )
    hdus += [fits.ImageHDU(pixels)] if change == "extension" else []
    file = io.BytesIO()
    hdus.writeto(file)
    data = file.getvalue()
    data = {"cut off": data[:-2880], "longer": data + b" "}.get(change, data)
    assert wcs.plain_hdu(io.BytesIO(data)) is None


# --- noise, PSF and mask that are read with an image ------------------------------------------


def whole(path: Path, files: CompanionFiles = NO_FILES) -> Image:
    (image,) = formats.read_all(path, companions=files)
    assert isinstance(image, Image)
    return image


@pytest.mark.parametrize(
    ("name", "value", "source"),
    [("ERR", 2, "map"), ("RMS", 2, "map"), ("VARIANCE", 4, "map"), ("WHT", 0.25, "weight"), ("IVAR", 0.25, "weight")],
)
def test_an_extension_gives_the_noise_as_standard_deviation(
    tmp_path: Path, name: str, value: float, source: str
) -> None:
    plane = np.full((24, 24), value, np.float32)
    plane[2, 3] = 0
    own = whole(save(tmp_path, f"SCI {name}", **{name: plane})).companions
    assert own.noise is not None
    assert own.noise_source == source
    assert np.nanmax(own.noise) == np.nanmin(own.noise) == 2
    assert np.argwhere(np.isnan(own.noise)).tolist() == [[2, 3]]


def test_pixels_of_huge_noise_have_none(tmp_path: Path) -> None:
    own = whole(save(tmp_path, "SCI ERR", ERR=noise(1e8))).companions
    assert own.noise is not None
    assert np.array_equal(np.isnan(own.noise), BAD)


def test_euclid_extensions_give_noise_and_psf_of_their_own_band(tmp_path: Path) -> None:
    planes = {
        "VIS_RMS": LIGHT * 0 + 3,
        "NIR_H_RMS": LIGHT * 0 + 5,
        "VIS_PSF": LIGHT[:5, :5],
        "NIR_H_PSF": LIGHT[:7, :7],
    }
    own = whole(save(tmp_path, "VIS_FLUX NIR_H_FLUX " + " ".join(planes), **planes)).companions
    assert own.noise is not None
    assert own.psf is not None
    assert (own.noise.max(), own.psf.shape, own.psf_source) == (3, (5, 5), "VIS_PSF")


def test_pixels_alone_are_read_unless_more_is_needed(tmp_path: Path) -> None:
    (image,) = formats.read_all(save(tmp_path, "SCI ERR PSF"))
    assert isinstance(image, Image)
    assert image.companions is NO_COMPANIONS


def lens_folder(folder: Path) -> Path:
    """A `data.fits` with noise, PSF and two masks beside it, of which one marks most pixels."""
    planes = {"data": LIGHT, "noise_map": LIGHT * 0 + 2, "psf": LIGHT[:5, :5], "mask_galaxies": BAD, "mask": 1 - BAD}
    for name, plane in planes.items():
        fits.PrimaryHDU(plane).writeto(folder / f"{name}.fits")
    return folder / "data.fits"


def test_files_beside_an_image_give_its_noise_psf_and_mask(tmp_path: Path) -> None:
    image = whole(lens_folder(tmp_path))
    assert image.noise is not None
    assert image.psf is not None
    assert (image.noise.max(), image.psf.shape) == (2, (5, 5))
    assert image.mask is not None
    assert np.array_equal(image.mask, BAD)
    assert image.notes[-1] == "a mask beside it marks most of the pixels, so it was not used"


def test_masks_beside_an_image_are_no_images(tmp_path: Path) -> None:
    assert list(list_images([lens_folder(tmp_path).parent])) == [tmp_path / "data.fits"]


@pytest.mark.parametrize("is_folder", [False, True])
@pytest.mark.parametrize("ending", ["fits", "npy"])
def test_an_option_names_a_file_for_all_images_or_a_folder(tmp_path: Path, is_folder: bool, ending: str) -> None:
    path = save(tmp_path, "SCI ERR PSF")
    other = tmp_path / "other" / (path.name if is_folder else f"noise.{ending}")
    other.parent.mkdir()
    if other.suffix == ".fits":
        fits.PrimaryHDU(LIGHT * 0 + 7).writeto(other)
    else:
        np.save(other, LIGHT * 0 + 7)
    image = whole(path, CompanionFiles(noise=str(other.parent if is_folder else other)))
    assert image.noise is not None
    assert (image.noise.max(), image.companions.noise_source) == (7, "option")


def test_the_noise_by_option_is_an_extension_that_is_called_so(tmp_path: Path) -> None:
    path = save(tmp_path, "SCI VARIANCE", VARIANCE=LIGHT * 0 + 9)
    image = whole(path, CompanionFiles(noise=str(path)))
    assert image.noise is not None
    assert image.noise.max() == 3


def test_a_mask_by_option_is_added_to_that_of_the_file(tmp_path: Path) -> None:
    path = save(tmp_path, "SCI DQ", DQ=BAD)
    np.save(tmp_path / "m.npy", np.eye(24, dtype=bool))
    image = whole(path, CompanionFiles(mask=str(tmp_path / "m.npy")))
    assert image.mask is not None
    assert np.array_equal(image.mask, (BAD != 0) | np.eye(24, dtype=bool))


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        (CompanionFiles(noise="no.fits"), "no.fits: no such file"),
        (CompanionFiles(mask="a.txt"), r"a.txt: .txt is no format"),
        (CompanionFiles(mask="m.npy"), r"a.fits: its mask has 5 x 5 pixels; needs 24 x 24"),
        (CompanionFiles(psf="two.fits"), "two.fits: holds 2 extensions, none of them called PSF"),
        (CompanionFiles(psf="stack.npy"), "stack.npy: holds no single PSF"),
    ],
)
def test_a_named_file_that_cannot_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: CompanionFiles, problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path, "SCI")
    fits.HDUList([fits.PrimaryHDU(LIGHT), fits.ImageHDU(LIGHT, name="ERR")]).writeto("two.fits")
    Path("a.txt").write_text("1")
    np.save("m.npy", np.eye(5))
    np.save("stack.npy", np.zeros((3, 9, 9)))
    with pytest.raises(ImageError, match=problem):
        whole(path, files)
