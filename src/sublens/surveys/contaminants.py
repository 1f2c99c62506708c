"""Settings of contaminants: images that are no lens of a survey's kind, for its out-of-distribution flag."""

from typing import Annotated, Literal, Self, get_args

from pydantic import Field

from sublens.config import Frozen
from sublens.surveys.priors import Positive, Prior

Kind = Literal["ellipticals", "spirals", "mergers", "quasars", "rings", "fields", "pairs"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Contaminants(Frozen):
    """Images in a training that are no lens of the survey's kind, with its camera, neighbours and defects."""

    share: Annotated[float, Field(gt=0, le=1)]
    """Share of the training images."""
    kinds: Annotated[tuple[Kind, ...], Field(min_length=1)] = KINDS
    """Kinds, equally likely: the survey's lens galaxies with nothing behind them (`ellipticals`), `spirals`, `mergers`,
    `quasars` behind the survey's haloes, galaxies with `rings`, `fields` of stars or nothing, and `pairs` of
    ellipticals."""
    brightness: Positive = Prior(kind="log_uniform", values=(0.1, 1.0))
    """Light of spirals, mergers, ring galaxies, pairs and all stars of a field over that of the survey's lens
    galaxy, or over ten times that of its source where lens galaxies are dark."""
    size: Positive = Prior(kind="uniform", values=(0.4, 1.6))
    """Half-light radius of spirals and galaxies of mergers and pairs, and radius of rings, in Einstein radii of the
    survey's lens."""
    separation: Positive = Prior(kind="uniform", values=(0.3, 1.8))
    """Distance between the galaxies of mergers and pairs, in Einstein radii of the survey's lens."""
    quasar: Positive = Prior(kind="log_uniform", values=(3.0, 100.0))
    """Light of a quasar over that of its host, which is the survey's source."""

    @classmethod
    def alone(cls, *kinds: Kind) -> Self:
        """Contaminants of these kinds, or of all if none is named, in every image."""
        return cls(share=1, kinds=kinds or KINDS)
