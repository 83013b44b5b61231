"""The network as TorchScript, fx graph, torch.export program, ONNX model and compiled graph computes the same."""
from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from randwire_zoo.graphs import Graph
from randwire_zoo.network import NODE_OPS, Stage

PICO = 'randwire_ws_pico'
# Legacy exporters announce their end at every call.
pytestmark = pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::UserWarning', 'ignore::FutureWarning')


def pico(**kwargs: Any) -> nn.Module:
    """A network in eval mode whose BN statistics are not those of a fresh one."""
    model = timm.create_model(PICO, **kwargs)
    with torch.no_grad():
        model.train()(torch.randn(4, 3, 64, 64))
    return model.eval()


def tiny(**kwargs: Any) -> nn.Module:
    arguments = {'graph': 'er(0.6)', 'num_nodes': 4, 'channels': 4, 'num_classes': 3, **kwargs}
    return timm.create_model('randwire', **arguments)


def images(batch: int = 2, size: int = 64) -> Tensor:
    return torch.randn(batch, 3, size, size)


@pytest.mark.parametrize('node_op', NODE_OPS)
@pytest.mark.parametrize('regime', ['small', 'regular'])
def test_torchscript_computes_the_same_after_saving(regime: str, node_op: str) -> None:
    model = tiny(regime=regime, node_op=node_op, drop_path_rate=0.5, drop_rate=0.1).eval()
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(model), buffer)
    buffer.seek(0)
    restored = torch.jit.load(buffer)
    for size in (64, 48):
        x = images(size=size)
        torch.testing.assert_close(restored(x), model(x))


def test_torchscript_trains_with_edge_removal() -> None:
    scripted = torch.jit.script(tiny(drop_path_rate=1.0).train())
    scripted(images()).sum().backward()
    assert all(parameter.grad is not None for parameter in scripted.parameters())


def test_torchscript_takes_the_feature_wrapper_and_a_trace() -> None:
    features = pico(features_only=True, out_indices=(1, 2, 4))
    x = images(1)
    torch.testing.assert_close(torch.jit.script(features)(x), features(x))

    class Neck(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body = body

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            means = []
            for feature in self.body(x):
                means.append(feature.mean(dim=[2, 3]))
            return means

    for body in (features, timm.create_model('resnet18', features_only=True).eval()):
        neck = Neck(body)
        torch.testing.assert_close(torch.jit.script(neck)(x), neck(x))
    model = pico()
    traced = torch.jit.trace(model, x)
    torch.testing.assert_close(traced(images(3, 96)).shape, model(images(3, 96)).shape)
    torch.testing.assert_close(traced(x), model(x))


def test_an_fx_graph_gives_any_intermediate_and_the_same_logits() -> None:
    model = pico()
    x = images()
    extracted = create_feature_extractor(model, ['conv_head', 'fc'])(x)
    torch.testing.assert_close(extracted['fc'], model(x))
    assert extracted['conv_head'].shape == (2, 1280, 2, 2)


def test_torch_export_leaves_the_batch_open() -> None:
    model = pico()
    with torch.no_grad():
        program = torch.export.export(model, (images(),), dynamic_shapes=({0: torch.export.Dim('batch', min=1)},))
        for batch in (1, 2, 5):
            x = images(batch)
            torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)


def run_onnx(path: Path, x: Tensor) -> Tensor:
    onnxruntime = pytest.importorskip('onnxruntime', reason='onnxruntime runs what was exported')
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


@pytest.mark.parametrize('dynamo', [False, True], ids=['torchscript', 'dynamo'])
def test_onnx_by_both_exporters_gives_torchs_logits_for_any_batch(dynamo: bool, tmp_path: Path) -> None:
    onnx = pytest.importorskip('onnx', reason='both exporters write with onnx')
    if dynamo:
        pytest.importorskip('onnxscript', reason='the dynamo exporter needs onnxscript')
    model = pico(drop_path_rate=0.1)
    path = tmp_path / 'model.onnx'
    shapes: dict[str, Any] = {'dynamic_shapes': ({0: torch.export.Dim('batch', min=1)},)} if dynamo else {
        'dynamic_axes': {'x': {0: 'batch'}}}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')
        torch.onnx.export(model, (images(),), str(path), input_names=['x'], dynamo=dynamo, **shapes)
    onnx.checker.check_model(str(path))
    operators = {node.op_type for node in onnx.load(str(path)).graph.node}
    assert not operators & {'RandomUniform', 'RandomUniformLike', 'Dropout'}, 'nothing random is left in eval mode'
    for batch in (1, 3):
        x = images(batch)
        with torch.no_grad():
            torch.testing.assert_close(run_onnx(path, x), model(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('training', [False, True], ids=['eval', 'train'])
@pytest.mark.parametrize('name', [PICO, 'randwire'])
def test_torch_compile_finds_one_graph_without_a_break(name: str, training: bool) -> None:
    torch._dynamo.reset()
    kwargs = {} if name == PICO else {
        'regime': 'regular', 'graph': 'ba(2)', 'num_nodes': 8, 'channels': 4, 'node_op': 'conv'}
    model = timm.create_model(name, drop_path_rate=1.0, drop_rate=0.2, **kwargs).train(training)
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    x = images()
    outputs = []
    for function in (compiled, model):
        torch.manual_seed(5)
        outputs.append(function(x))
    assert len(graphs) == 1
    torch.testing.assert_close(*outputs)
    if training:
        outputs[0].sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        assert not torch.equal(compiled(x), compiled(x)), 'each minibatch draws its own edge'
        assert len(graphs) == 1


def test_torch_compile_with_gradient_checkpointing_does_not_break_either() -> None:
    torch._dynamo.reset()
    model = tiny(drop_path_rate=0.5).train()
    model.set_grad_checkpointing()
    torch.compile(model, backend='aot_eager', fullgraph=True)(images()).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.timeout(600)
def test_inductor_trains_a_stage_as_eager_does() -> None:
    # One stage holds all that is ours; compiling five would take minutes on a small machine and prove nothing more.
    torch._dynamo.reset()
    stage = Stage(Graph(3, ((0, 1), (0, 2), (1, 2))), 2, 2).double()
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    gradients = []
    for function in (torch.compile(stage, fullgraph=True), stage):
        stage.zero_grad()
        function(x).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in stage.parameters()])  # type: ignore[union-attr]
    torch.testing.assert_close(*gradients)
