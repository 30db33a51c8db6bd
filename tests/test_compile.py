"""`torch.compile` of the denoiser and of the whole model: one graph, compiled once, with the gradients of eager mode."""

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from vdm_diffusers import VDM, LearnedMonotoneSchedule, VDMUNet2DModel


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.fixture
def vdm() -> VDM:
    unet = VDMUNet2DModel(8, 3, block_channels=8, layers_per_side=1, norm_num_groups=4, dropout=0.0)
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return VDM(unet, LearnedMonotoneSchedule(num_features=8))


def gradients(vdm: VDM, bits_per_dim: Tensor) -> dict[str, Tensor]:
    vdm.zero_grad()
    bits_per_dim.mean().backward()
    return {name: parameter.grad.clone() for name, parameter in vdm.named_parameters()}


def test_the_model_is_one_graph(vdm):
    counter = CompileCounter()
    compiled = torch.compile(vdm, backend=counter, fullgraph=True)
    for _ in range(3):
        draws = {"times": torch.rand(4), "noise": torch.randn(2, 4, 3, 8, 8)}
        images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
        expected = gradients(vdm, vdm(images, **draws).bits_per_dim)
        measured = gradients(vdm, compiled(images, **draws).bits_per_dim)
        for name, gradient in measured.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)
    assert counter.frame_count == 1


def test_the_denoiser_is_compiled_once_for_training_and_once_for_sampling(vdm):
    counter = CompileCounter()
    vdm.unet.compile(backend=counter, fullgraph=True)
    images = torch.randint(0, 256, (4, 3, 8, 8))
    for _ in range(3):
        vdm(images).bits_per_dim.mean().backward()
    assert counter.frame_count == 1
    vdm.to_pipeline()(batch_size=4, num_inference_steps=5, output_type="pt")
    assert counter.frame_count == 2


@pytest.mark.parametrize("options", [{}, {"attention_everywhere": True}, {"cross_attention_dim": 6}])
def test_a_deep_denoiser_is_compiled_by_its_blocks_as_a_shallow_one_is(options):
    """With the outputs and gradients of eager mode."""
    text = {"encoder_hidden_states": torch.randn(2, 3, 6)} if "cross_attention_dim" in options else {}
    sample, counts = torch.randn(2, 3, 8, 8), []
    for layers_per_side in (1, 3):
        torch._dynamo.reset()
        unet = VDMUNet2DModel(
            8, 3, block_channels=8, layers_per_side=layers_per_side, norm_num_groups=4, dropout=0.0, **options
        )
        for parameter in unet.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        expected = unet(sample, 500.0, **text).sample
        expected_gradients = torch.autograd.grad(expected.square().sum(), unet.parameters())
        counter = CompileCounter()
        unet.compile_repeated_blocks(backend=counter, fullgraph=True)
        output = unet(sample, 500.0, **text).sample
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(torch.autograd.grad(output.square().sum(), unet.parameters()), expected_gradients)
        counts.append(counter.frame_count)
    assert counts[0] == counts[1] <= 4
