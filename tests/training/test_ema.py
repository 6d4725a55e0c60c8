"""The average of the weights: its numbers, its place in a model, its way through a state."""

from __future__ import annotations

import pytest
import torch

from warmstart.training.ema import Average


def _walk(average: Average, model: torch.nn.Linear, steps: range) -> None:
    for step in steps:
        with torch.no_grad():
            for i, parameter in enumerate(model.parameters()):
                parameter.add_(torch.full_like(parameter, 0.1 * step + i))
        average.update(step)


def test_it_is_the_recursion_written_down() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    expected, value = model.weight.detach().double(), model.weight.detach().double()
    average = Average(model, 0.6)
    for step in range(1, 21):
        _walk(average, model, range(step, step + 1))
        value = value + 0.1 * step
        kept = min(0.6, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * value
    torch.testing.assert_close(average.state()["weight"].double(), expected, rtol=1e-5, atol=1e-5)


def test_in_place_gives_every_bit_back_also_after_an_error() -> None:
    model = torch.nn.Linear(3, 2)
    average = Average(model, 0.9)
    _walk(average, model, range(1, 6))
    own = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(KeyboardInterrupt), average.in_place():
        for name, values in average.state().items():
            assert torch.equal(model.get_parameter(name), values) and not torch.equal(values, own[name])
        raise KeyboardInterrupt
    assert all(torch.equal(p, own[name]) for name, p in model.named_parameters())
    average.keep()
    assert torch.equal(model.weight, average.state()["weight"])


def test_a_state_goes_on_to_the_last_bit_and_frozen_weights_are_not_in_it() -> None:
    model = torch.nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    average = Average(model, 0.9)
    _walk(average, model, range(1, 4))
    state = {name: values.clone() for name, values in average.state().items()}
    assert state.keys() == {"weight"}
    other = torch.nn.Linear(3, 2)
    other.load_state_dict(model.state_dict())
    other.bias.requires_grad_(False)
    resumed = Average(other, 0.9)
    resumed.load(state)
    _walk(average, model, range(4, 8))
    _walk(resumed, other, range(4, 8))
    assert torch.equal(resumed.state()["weight"], average.state()["weight"])
    with pytest.raises(KeyError):
        resumed.load({})
