"""Cheap predictions against formulas and plain computations of the same."""
from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import timm
import tiny_study
import torch
from PIL import Image
from tiny_study import SPEC, Here, write
from torch import Tensor, nn
from torch.nn import functional as F

from randwire_zoo.kernels.library import use_kernels
from randwire_zoo.studies.proxies import (
    PROXIES,
    gradient_norm,
    jacobian_covariance,
    measure_proxies,
    naswot,
    synflow,
)
from randwire_zoo.studies.running import run_study
from randwire_zoo.studies.study import load_study
from randwire_zoo.training.recipes import load_recipe

data = tiny_study.data  # a fixture


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model('randwire', graph='er(0.5)', seed=1, num_nodes=5, channels=4, stem_stride=1, num_classes=3)


def batch(count: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 16, 16, generator=generator), torch.arange(count) % 3


def test_the_gradient_norm_is_what_the_loss_rises_by_along_each_gradient() -> None:
    model, (images, targets) = network(), batch()
    double = copy.deepcopy(model).double().train()

    def loss() -> float:
        with torch.no_grad():
            return float(F.cross_entropy(double(images.double()), targets))

    total = 0.0
    for module in double.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            gradient, = torch.autograd.grad(F.cross_entropy(double(images.double()), targets), module.weight)
            unit = gradient / gradient.norm()
            step = 1e-6
            with torch.no_grad():
                module.weight += step * unit
                above = loss()
                module.weight -= 2 * step * unit
                total += (above - loss()) / (2 * step)
                module.weight += step * unit
    assert gradient_norm(model, images, targets) == pytest.approx(total, rel=1e-3)


def test_synflow_of_a_chain_of_layers_is_their_number_times_its_output() -> None:
    """Euler's theorem: the output is of degree 1 in the weights of each layer."""
    torch.manual_seed(0)
    chain = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3, bias=False),
                          nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 5, bias=False))
    ones = torch.ones(1, 2, 7, 7, dtype=torch.float64)
    first, second, last = (chain[i].weight.detach().double().abs() for i in (0, 3, 6))
    output = F.conv2d(F.conv2d(ones, first) / math.sqrt(1 + 1e-5), second).flatten(1) @ last.T
    assert synflow(chain, torch.randn(1, 2, 7, 7)) == pytest.approx(math.log10(3 * output.sum()))


def test_synflow_of_a_random_network_is_how_it_grows_with_all_its_weights() -> None:
    model = network().double().eval()
    grown = copy.deepcopy(model)
    for parameter in grown.parameters():
        parameter.data.abs_()
    ones = torch.ones(1, 3, 16, 16, dtype=torch.float64)

    def output(factor: float) -> float:
        scaled = copy.deepcopy(grown)
        with torch.no_grad():
            for module in scaled.modules():
                if isinstance(module, (nn.Conv2d, nn.Linear)):
                    module.weight *= factor
            return float(scaled(ones).sum())

    slope = (output(1 + 1e-5) - output(1 - 1e-5)) / 2e-5
    assert synflow(model.float(), ones[:1].float()) == pytest.approx(math.log10(slope), abs=1e-6)


def test_naswot_counts_the_rectified_elements_that_two_images_agree_in() -> None:
    torch.manual_seed(0)
    for rectify in (nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6()):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), rectify, nn.Conv2d(4, 5, 3), rectify, nn.Flatten(),
                              nn.LazyLinear(2))
        images, _ = batch()
        model(images)
        states, x = [], images
        for layer in list(model)[:4]:
            x = layer(x.clone())
            if layer is rectify:
                states.append((x > 0).flatten(1).numpy())
        on = np.concatenate(states, 1)
        kernel = [[float((one == other).sum()) for other in on] for one in on]
        assert naswot(model, images) == pytest.approx(np.linalg.slogdet(kernel)[1])
    # Every rectification of a RandWire network is one: conv2's, of each random stage's input and of each node that
    # sums, of the features and of the head.
    model, (images, _) = network(), batch()
    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ('relu', 'relu_'):
            original = getattr(F, name)
            patch.setattr(F, name, lambda x, *args, original=original, **kwargs: (
                seen.append(1) or original(x, *args, **kwargs)))
        model.train()(images)
    stages = [module for module in model.modules() if hasattr(module, 'graph')]
    nodes = sum(sum(len(sources) > 1 for sources in stage.graph.predecessors) for stage in stages)
    assert len(seen) >= 6 + nodes and math.isfinite(naswot(model, images))


def test_the_jacobian_score_is_that_of_numpy() -> None:
    model, (images, _) = network(), batch()
    plain = copy.deepcopy(model).train()
    rows = []
    for i in range(len(images)):  # an image's own gradient of the sum, with the batch around it
        x = images.clone().requires_grad_()
        plain(x).sum().backward()
        assert x.grad is not None
        rows.append(x.grad[i].flatten().double().numpy())
    values = np.linalg.eigvalsh(np.corrcoef(np.stack(rows)))
    assert jacobian_covariance(model, images) == pytest.approx(-(np.log(values + 1e-5) + 1 / (values + 1e-5)).sum(),
                                                               rel=1e-4)


def test_a_network_is_left_as_it_was_and_kernels_change_nothing() -> None:
    model, (images, targets) = network().to(memory_format=torch.channels_last), batch()
    before = {name: value.clone() for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    found = measure_proxies(model, images, targets)
    assert tuple(found) == PROXIES and all(map(math.isfinite, found.values()))
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())
    use_kernels('native')
    try:
        assert measure_proxies(model, images, targets) == pytest.approx(found, rel=1e-3)
    finally:
        use_kernels('torch')
    with torch.no_grad():  # what is no number is left out
        model.fc.weight.fill_(0)
    assert set(measure_proxies(model, images, targets)) == {'gradient norm', 'naswot'}


def test_a_study_measures_the_weights_that_its_trainings_begin_with(data: Path, tmp_path: Path) -> None:
    still = {'opt': 'sgd', 'lr': 1e-20, 'weight_decay': 0.0, 'epochs': 1}  # nothing is learned
    study = load_study(write(tmp_path, seeds=[3], proxies=6, damage=0, eval_sizes=[],
                             settings={**SPEC['settings'], **still}))
    rows = run_study(study, study.networks(), tmp_path / 'output', Here(), str(data), progress=False).rows
    files = sorted((data / 'colours' / 'train').glob('*/*.png'))
    chosen = [files[i * len(files) // 6] for i in range(6)]
    recipe = load_recipe('cifar10/study')
    images = (torch.stack([torch.from_numpy(np.array(Image.open(path))) for path in chosen]).permute(0, 3, 1, 2) / 255
              - torch.tensor(recipe['mean']).view(3, 1, 1)) / torch.tensor(recipe['std']).view(3, 1, 1)
    for name, row in rows.items():
        kwargs = {'num_classes': 3, 'in_chans': 3, **row['kwargs']}
        model = timm.create_model(row['model'], **kwargs)
        first = copy.deepcopy(model.state_dict())
        trained = torch.load(tmp_path / 'output' / 'runs' / name / 'last.pth.tar', weights_only=False)['state_dict']
        model.load_state_dict({key: first[key] if 'running' in key or 'num_batches' in key else value
                               for key, value in trained.items()})
        expected = measure_proxies(model, images, torch.tensor([int(path.parent.name) for path in chosen]))
        assert row['proxies'] == pytest.approx(expected, rel=1e-3), name
    assert len({row['proxies']['synflow'] for row in rows.values()}) == 3
    for changes in ({'proxies': 1}, {'proxies': -1}, {'proxies': 2.5}):
        with pytest.raises(ValueError, match='proxies'):
            load_study(write(tmp_path, **changes))
