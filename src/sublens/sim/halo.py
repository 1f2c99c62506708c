"""The smooth lens of each scene: its halo and the shear around it."""

from torch import Tensor

from sublens.lensing import mass, power_law
from sublens.sim.galaxies import Columns
from sublens.surveys.survey import Survey


def smooth_deflection(scene: Columns, survey: Survey, x: Tensor, y: Tensor) -> mass.Field:
    """Reduced deflection of each scene's halo and shear, arcsec, as two planes [n, h, w]; scene: its columns."""
    if survey.halo.is_general:
        return _general_deflection(scene, survey, x, y)
    is_sphere = survey.halo.q.low == 1
    if is_sphere and is_grid_here(x, y):
        return mass.sphere_in_shear(x, y, scene["halo_theta_e"], scene["gamma"], scene["shear_angle"])
    shear = mass.shear_deflection(x, y, scene["gamma"], scene["shear_angle"])
    if is_sphere:
        halo = mass.sis_deflection(x, y, scene["halo_theta_e"])
    else:
        halo = mass.sie_deflection(x, y, scene["halo_theta_e"], scene["halo_q"], scene["halo_angle"])
    return halo[0] + shear[0], halo[1] + shear[1]


def smooth_convergence(scene: Columns, survey: Survey, x: Tensor, y: Tensor) -> Tensor:
    """Convergence of each scene's halo, [n, h, w]."""
    if survey.halo.is_general:
        return _general_convergence(scene, x, y)
    return mass.sie_convergence(x, y, scene["halo_theta_e"], scene["halo_q"], scene["halo_angle"])


def _general_deflection(scene: Columns, survey: Survey, x: Tensor, y: Tensor) -> mass.Field:
    """Deflection of power law, multipoles and shear."""
    dx, dy, shape = x - scene["halo_x"], y - scene["halo_y"], (scene["halo_theta_e"], *_shape(scene))
    parts = [
        mass.shear_deflection(x, y, scene["gamma"], scene["shear_angle"]),
        power_law.power_law_deflection(dx, dy, *shape, power_law.n_terms(survey.halo.q.low)),
        *(power_law.multipole_deflection(dx, dy, order, *_multipole(scene, order)) for order in (3, 4)),
    ]
    alpha_x, alpha_y = zip(*parts, strict=True)
    return sum(alpha_x[1:], alpha_x[0]), sum(alpha_y[1:], alpha_y[0])


def _general_convergence(scene: Columns, x: Tensor, y: Tensor) -> Tensor:
    dx, dy = x - scene["halo_x"], y - scene["halo_y"]
    kappa = power_law.power_law_convergence(dx, dy, scene["halo_theta_e"], *_shape(scene))
    for order in (3, 4):
        kappa = kappa + power_law.multipole_convergence(dx, dy, order, *_multipole(scene, order))
    return kappa


def _shape(scene: Columns) -> tuple[Tensor, Tensor, Tensor]:
    return scene["halo_q"], scene["halo_angle"], scene["slope"]


def _multipole(scene: Columns, order: int) -> tuple[Tensor, Tensor]:
    """Amplitude, arcsec, and angle."""
    return scene["theta_e"] * scene[f"m{order}"], scene[f"m{order}_angle"]


def is_grid_here(x: Tensor, y: Tensor) -> bool:
    """Whether x and y are axes of a grid, on the processor and without a gradient, for a compiled loop."""
    is_grid = x.shape[-2] == 1 and y.shape[-1] == 1
    return x.device.type == "cpu" and is_grid and not x.requires_grad
