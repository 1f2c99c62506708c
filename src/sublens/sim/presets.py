"""Named surveys."""

from math import radians, tau

from sublens.config import SimConfig
from sublens.errors import ConfigError, nearest

COMMON_TEST_1 = SimConfig(
    name="common-test-1",
    n_pixels=150,
    pixel_scale=0.05,
    psf_sigma=1.743,
    background=10,
    convention="deeplense",
    h0=70,
    om0=0.3,
    z_lens=(0.4, 0.6),
    z_source=(0.8, 1.2),
    mass_msun=1e12,
    shear=(0, 0.3),
    position_angle=(0, radians(tau)),
    sersic_n=1.5,
    sersic_r_eff=0.5,
    sersic_intensity=100,
    axis_ratio=(0.4, 1),
    source_offset=(0, 0.5),
    subhalo_mean_number=25,
    subhalo_mass_msun=(1e6, 1e10),
    subhalo_slope=-0.9,
    subhalo_radius=(0, 2),
    string_mass_fraction=(0.03, 0.055),
    string_centre_sigma=0.5,
    string_half_length=(0.5, 2),
)
"""ML4SCI DeepLense "Common Test I", as recovered from its images.

Two of its habits are kept because they made the data. Einstein radii follow the `deeplense`
convention. Position angles were drawn from [0, 2 pi] radians and used as degrees, so they lie
between 0 and 6.3 degrees and every ring is drawn out along x.
"""

PRESETS = {preset.name: preset for preset in (COMMON_TEST_1,)}


def preset(name: str) -> SimConfig:
    """The survey of that name, or a `ConfigError` that offers the nearest."""
    if name not in PRESETS:
        raise ConfigError(f"There is no preset called {name!r}. {nearest(name, PRESETS)}")
    return PRESETS[name]
