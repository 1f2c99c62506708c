import pytest
import torch

from sublens.sim import render
from sublens.sim.population import draw
from sublens.surveys.survey import Survey


def test_a_machine_without_triton_renders_mass_by_mass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "find_spec", lambda name: None)
    assert not render._has_kernel("cuda")
    assert not render._has_kernel("cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_gpu_adds_point_masses_as_a_processor_does(small_survey: Survey) -> None:
    assert render._has_kernel("cuda")
    truth = draw(small_survey, 1, "train", range(30))
    here, there = (render.render(truth, small_survey, device).cpu() for device in ("cpu", "cuda"))
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-3)
