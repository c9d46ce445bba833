"""NASNet-A Mobile against Keras' NASNetMobile, whose figures are written down here by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from casting_tune.models import nasnet


@pytest.fixture(autouse=True)
def registered() -> None:
    nasnet.register()


def on_meta(in_chans: int = 3) -> nn.Module:
    """The network without numbers: enough wherever only its form is asked for."""
    with torch.device("meta"):
        return timm.create_model("casting_nasnet_mobile", num_classes=0, in_chans=in_chans)


def test_it_has_the_parameters_and_statistics_of_keras() -> None:
    mobile = on_meta()
    trainable = sum(p.numel() for p in mobile.parameters())
    statistics = sum(b.numel() for path, b in mobile.named_buffers() if "running" in path)
    assert trainable == 4_232_978
    assert trainable + statistics == 4_269_716


def test_its_classifier_is_one_dense_layer_of_a_thousand_classes() -> None:
    with torch.device("meta"):
        whole = timm.create_model("casting_nasnet_mobile")
    assert sum(p.numel() for p in whole.parameters()) == 4_232_978 + 1056 * 1000 + 1000
    assert whole(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 1000)


def test_every_stage_has_the_map_sizes_of_keras_at_224_px() -> None:
    mobile = on_meta()
    shapes: dict[str, tuple[int, ...]] = {}
    for path, module in mobile.named_modules():
        module.register_forward_hook(
            lambda _m, _i, out, path=path: shapes.update({path: tuple(out.shape[1:])})
        )
    mobile(torch.empty(1, 3, 224, 224, device="meta"))
    expected = {
        "conv0": (32, 111, 111),
        "cell_stem_0": (44, 56, 56),
        "cell_stem_1": (88, 28, 28),
        "stages.0.0": (264, 28, 28),
        "stages.0.3": (264, 28, 28),
        "reductions.0": (352, 14, 14),
        "stages.1.3": (528, 14, 14),
        "reductions.1": (704, 7, 7),
        "stages.2.3": (1056, 7, 7),
        "act": (1056, 7, 7),
    }
    assert {path: shapes[path] for path in expected} == expected
    assert "stages.0.4" not in shapes


def test_each_cell_is_fed_by_the_two_outputs_before_it() -> None:
    mobile = on_meta()
    outputs: dict[str, torch.Tensor] = {}
    inputs: dict[str, tuple[torch.Tensor, ...]] = {}
    order = ["cell_stem_0", "cell_stem_1", *(f"stages.0.{i}" for i in range(4)), "reductions.0"]
    order += [
        *(f"stages.1.{i}" for i in range(4)),
        "reductions.1",
        *(f"stages.2.{i}" for i in range(4)),
    ]
    for path in order:

        def keep(
            _module: nn.Module, given: tuple[torch.Tensor, ...], out: torch.Tensor, path: str = path
        ) -> None:
            inputs[path], outputs[path] = given, out

        mobile.get_submodule(path).register_forward_hook(keep)
    mobile(torch.empty(1, 3, 64, 64, device="meta"))
    for i in range(2, len(order)):
        current, previous = inputs[order[i]]
        assert current is outputs[order[i - 1]], order[i]
        assert previous is outputs[order[i - 2]], order[i]


@pytest.mark.parametrize(
    ("side", "expected"),
    [(4, [[-1.0, 0.0], [0.0, 0.0]]), (5, [[0.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, 0.0]])],
)
def test_every_max_pool_pads_with_zeros_as_keras_does(
    side: int, expected: list[list[float]]
) -> None:
    mobile = on_meta()
    pools = [module for module in mobile.modules() if "MaxPool" in type(module).__name__]
    assert len(pools) == 8  # two in each of two stem and two reduction cells
    for pool in pools:
        assert pool(-torch.ones(1, 1, side, side))[0, 0].tolist() == expected


@pytest.mark.slow
def test_one_input_channel_changes_only_the_first_convolution() -> None:
    gray, colour = on_meta(in_chans=1), on_meta()
    different = [k for k, v in gray.state_dict().items() if v.shape != colour.state_dict()[k].shape]
    assert different == ["conv0.conv.weight"]
    assert gray.conv0.conv.weight.shape == (32, 1, 3, 3)


def test_registering_it_twice_does_not_warn() -> None:
    nasnet.register()
    assert timm.is_model("casting_nasnet_mobile")


def test_it_has_no_pretrained_weights_and_says_so() -> None:
    with pytest.raises(RuntimeError, match="No pretrained weights"):
        timm.create_model("casting_nasnet_mobile", pretrained=True)


@pytest.mark.slow
def test_its_last_maps_come_out_of_a_relu_and_a_saved_network_comes_back_exactly(
    tmp_path: Path,
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mobile = timm.create_model("casting_nasnet_mobile", num_classes=0, in_chans=1)
    with torch.no_grad():
        maps = mobile.forward_features(
            torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
        )
    assert maps.shape == (2, 1056, 2, 2)
    assert maps.min() == 0
    assert maps.max() > 0
    timm.models.save_for_hf(mobile, str(tmp_path), safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert mobile.state_dict().keys() == again.state_dict().keys()
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in mobile.state_dict().items())
