import numpy as np

from sublens.lensing import steep


def rough(fields: np.ndarray) -> np.ndarray:
    """Pixels not to be interpolated, for limits of 0.1 arcsec and 0.1 of a noise of 2."""
    marks = np.zeros((12, 12), np.bool_)
    steep.mark_rough(fields.astype(np.float32), np.float32(4), np.full(2, 0.1, np.float32), marks)
    return marks


def test_pixels_up_to_two_from_a_spike_along_an_axis_are_rough() -> None:
    for field in range(3):
        fields = np.zeros((3, 16, 16))
        fields[field, 7, 9] = 1
        expected = np.zeros((12, 12), bool)
        expected[3:8, 7] = expected[5, 5:10] = True
        assert np.array_equal(rough(fields), expected)


def test_a_cubic_is_smooth() -> None:
    axis = np.linspace(-1, 1, 16)
    assert not rough(np.broadcast_to(1 + axis**3 + axis[:, None] ** 2, (3, 16, 16))).any()


def test_light_without_number_is_not_interpolated() -> None:
    fields = np.zeros((3, 16, 16))
    fields[2, 8, 8] = np.nan
    assert rough(fields)[6, 6]
