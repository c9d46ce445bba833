"""Backbones, heads and weights.

Parameter counts are those of Keras' and timm's own networks, written down by hand.
"""

from __future__ import annotations

import http.server
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from casting_tune.errors import UsageError, WeightsError
from casting_tune.models import build, input_size, pretrained, registry

TRAINABLE = {
    "xception": 20_806_952,
    "vgg16": 14_714_688,
    "resnet50": 23_508_032,
    "resnet101v2": 42_492_480,
    "inceptionv3": 21_785_568,
    "inception_resnet_v2": 54_306_464,
    "mobilenetv2": 2_223_872,
    "densenet169": 12_484_480,
    "nasnet_mobile": 4_232_978,
    "efficientnetb4": 17_548_616,
}
# total and trainable without top; the difference is batch-norm statistics (and 7 constants, see
# below)
KERAS = {
    "xception": (20_861_480, 20_806_952),
    "vgg16": (14_714_688, 14_714_688),
    "resnet50": (23_587_712, 23_534_592),
    "resnet101v2": (42_626_560, 42_528_896),
    "inceptionv3": (21_802_784, 21_768_352),
    "inception_resnet_v2": (54_336_736, 54_276_192),
    "mobilenetv2": (2_257_984, 2_223_872),
    "densenet169": (12_642_880, 12_484_480),
    "nasnet_mobile": (4_269_716, 4_232_978),
    "efficientnetb4": (17_673_823, 17_548_616),
}
WIDTH = {
    "xception": 2048,
    "vgg16": 512,
    "resnet50": 2048,
    "resnet101v2": 2048,
    "inceptionv3": 2048,
    "inception_resnet_v2": 1536,
    "mobilenetv2": 1280,
    "densenet169": 1664,
    "nasnet_mobile": 1056,
    "efficientnetb4": 1792,
}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def build_model(name: str, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "weights": "none",
        "dense": 0,
        "dropout": 0.0,
        "in_channels": 3,
        "seed": 0,
    }
    return build.model(name, **(settings | changes))


def build_on_meta(name: str, **changes: Any) -> Any:
    with torch.device("meta"):
        return build_model(name, **changes)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """One thread: on two busy cores a second one makes batches of two several times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True, kw_only=True)
class Step:
    name: str
    model: Any
    inputs: torch.Tensor
    logits: torch.Tensor


@pytest.fixture(scope="module", params=list(TRAINABLE))
def step(request: pytest.FixtureRequest) -> Step:
    """One training step of two images at the smallest side."""
    name = request.param
    px = 75 if name.startswith("inception") else 32
    model = build_model(name).train()
    inputs = torch.randn(2, 3, px, px, generator=torch.Generator().manual_seed(0))
    logits = model(inputs)
    nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor([0.0, 1.0])).backward()
    return Step(name=name, model=model, inputs=inputs, logits=logits)


def test_the_table_has_the_ten_backbones_of_the_study() -> None:
    assert {b.study_name for b in registry.BACKBONES.values()} == {
        *("Xception", "VGG16", "ResNet50", "ResNet101V2", "InceptionV3", "InceptionResNetV2"),
        *("MobileNetV2", "DenseNet169", "NASNetMobile", "EfficientNetB4"),
    }
    assert list(registry.BACKBONES) == list(TRAINABLE)


def test_every_backbone_gives_one_finite_logit_an_image(step: Step) -> None:
    assert step.logits.shape == (2,)
    assert step.logits.dtype == torch.float32
    assert torch.isfinite(step.logits).all()


def test_every_parameter_of_every_backbone_gets_a_finite_gradient(step: Step) -> None:
    idle = [
        path
        for path, p in step.model.named_parameters()
        if p.grad is None or not torch.isfinite(p.grad).all()
    ]
    assert idle == []
    assert next(step.model.backbone.parameters()).grad.abs().sum() > 0


def test_every_backbone_ends_in_its_own_activation(step: Step) -> None:
    with torch.no_grad():
        maps = step.model.backbone(step.inputs)
    assert maps.shape[:2] == (2, WIDTH[step.name])
    floor = (
        -0.2785 if step.name == "efficientnetb4" else 0.0
    )  # the minimum of SiLU; of ReLU and ReLU6
    assert floor <= maps.min() <= 0
    assert maps.max() > 0


def test_the_head_sees_the_global_average_of_forward_features(step: Step) -> None:
    with torch.no_grad():
        step.model.eval()
        pooled = step.model.backbone.forward_features(step.inputs).mean((2, 3))
        expected = pooled @ step.model.head.logit.weight[0] + step.model.head.logit.bias
        actual = step.model(step.inputs)
        step.model.train()
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TRAINABLE)
def test_every_backbone_has_the_parameters_that_are_written_down(name: str) -> None:
    total, trainable = KERAS[name]
    statistics = (
        total - trainable - (7 if name == "efficientnetb4" else 0)
    )  # 7: Keras' normalisation constants
    network = build_on_meta(name).backbone
    assert build.n_parameters(network) == (TRAINABLE[name], statistics)
    row = registry.BACKBONES[name]
    assert (row.n_parameters, row.n_statistics) == (TRAINABLE[name], statistics)
    assert build.n_parameters(build_on_meta(name))[0] == row.n_parameters + row.n_features + 1


@pytest.mark.parametrize("name", TRAINABLE)
def test_every_backbone_takes_one_channel(name: str) -> None:
    model = build_on_meta(name, in_channels=1, dense=8, dropout=0.5)
    assert model(torch.empty(2, 1, 96, 96, device="meta")).shape == (2,)


@pytest.mark.parametrize(
    ("dense", "dropout", "trainable", "layers"),
    [
        (1024, 0.5, 19_385_673, ["dense", "relu", "dropout", "logit"]),
        (1024, 0.0, 19_385_673, ["dense", "relu", "logit"]),
        (0, 0.5, 17_550_409, ["dropout", "logit"]),
        (0, 0.0, 17_550_409, ["logit"]),
    ],
)
def test_efficientnet_b4_has_the_studys_parameters(
    dense: int, dropout: float, trainable: int, layers: list[str]
) -> None:
    model = build_on_meta("efficientnetb4", dense=dense, dropout=dropout)
    assert build.n_parameters(model) == (trainable, 125_200)
    assert [path for path, _ in model.head.named_children()] == layers


def test_a_head_starts_in_glorots_range_with_zero_biases() -> None:
    head = build_model("timm:resnet10t", dense=1024).head
    bound = (6 / (512 + 1024)) ** 0.5
    assert 0.99 * bound < head.dense.weight.abs().max() <= bound
    assert not head.dense.bias.any()
    assert not head.logit.bias.any()


def test_the_dropout_rate_is_the_requested_one() -> None:
    assert build_on_meta("mobilenetv2", dropout=0.3).head.dropout.p == 0.3


def same(left: nn.Module, right: nn.Module) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in ours.items())


def test_a_seed_repeats_and_another_seed_differs_in_backbone_and_head() -> None:
    first, again, other = (build_model("mobilenetv2", seed=seed) for seed in (3, 3, 4))
    assert same(first, again)
    assert not torch.equal(first.backbone.conv_stem.weight, other.backbone.conv_stem.weight)
    assert not torch.equal(first.head.logit.weight, other.head.logit.weight)


def test_the_head_does_not_depend_on_the_backbones_draws_nor_the_backbone_on_the_head() -> None:
    small, large = build_model("timm:resnet10t", dense=16), build_model("timm:resnet18", dense=16)
    assert same(small.head, large.head)
    assert same(small.backbone, build_model("timm:resnet10t", dense=0).backbone)


def test_building_checking_and_loading_leave_every_global_generator_alone(tmp_path: Path) -> None:
    weights = saved("resnet10t", tmp_path)
    torch.manual_seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    build_model("timm:resnet10t", dense=4, dropout=0.5)
    build_model("timm:resnet10t", weights=weights)
    input_size.check_size("timm:resnet10t", 64)
    build.weights_id("timm:resnet10t", weights)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())


@pytest.mark.parametrize(
    ("name", "image_px", "way_out"),
    [
        pytest.param(
            "inceptionv3", 96, "Use batch_size = 2, or image_px = 112.", marks=pytest.mark.slow
        ),
        pytest.param(
            "inception_resnet_v2",
            96,
            "Use batch_size = 2, or image_px = 112.",
            marks=pytest.mark.slow,
        ),
        ("resnet50", 32, "Use batch_size = 2, or image_px = 48."),
        ("timm:resnet10t", 32, "Use batch_size = 2, or image_px = 48."),
        ("timm:test_vit.r160_in1k", 160, ""),
        ("vgg16", 32, ""),  # no batch normalisation
        ("resnet50", 64, ""),
    ],
)
def test_a_batch_of_one_image_is_refused_exactly_where_a_training_step_with_it_fails(
    name: str, image_px: int, way_out: str
) -> None:
    device = torch.device(
        "cpu" if name.startswith("timm:") else "meta"
    )  # the others are large: 40 s on the CPU
    with device:
        model = build_model(name, dense=8, dropout=0.1).train()
    input_size.check_batch(name, image_px, 2)
    model(torch.zeros(2, 3, image_px, image_px, device=device))
    if not way_out:
        input_size.check_batch(name, image_px, 1)
        model(torch.zeros(1, 3, image_px, image_px, device=device))
        return
    with pytest.raises(
        UsageError,
        match=f"batch_size must be at least 2 for '{name}' at image_px {image_px}.*{way_out}$",
    ):
        input_size.check_batch(name, image_px, 1)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(torch.zeros(1, 3, image_px, image_px, device=device))
    side = int(way_out.rpartition(" ")[2].rstrip("."))
    model(torch.zeros(1, 3, side, side, device=device))


def test_the_networks_in_timms_source_are_those_of_its_registry() -> None:
    assert registry._source_names() == set(timm.list_models()) - {"casting_nasnet_mobile"}


def test_the_table_and_its_listing_need_neither_torch_nor_timm() -> None:
    code = (
        "import sys; from casting_tune.models import build, input_size, registry; "
        "registry.listing(); registry.check_name('vgg16'); input_size.check_size('vgg16', 64); "
        "build.weights_id('vgg16', 'none'); build.weights_id('timm:resnet18', 'none'); "
        "print({'torch', 'timm'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "set()\n"


@pytest.mark.parametrize(
    "name", [name for name, backbone in registry.BACKBONES.items() if backbone.weights]
)
def test_the_known_identity_of_weights_is_timms_own_name_of_them(name: str) -> None:
    assert build.expected_weights_id(name, "imagenet") == f"imagenet:{build._source(name).tag}"


def test_a_plan_of_imagenet_weights_needs_neither_torch_nor_timm() -> None:
    code = (
        "import sys; from casting_tune.models import build, registry; "
        "from casting_tune.execution import nodes; nodes.machine.has_gpu_device(); "
        "[build.expected_weights_id(name, 'imagenet') "
        "for name, known in registry.BACKBONES.items() if known.weights]; "
        "print({'torch', 'timm'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "set()\n"


def test_the_listing_says_what_is_known_of_each() -> None:
    rows = {row["name"]: row for row in registry.listing()}
    assert rows["inceptionv3"] == {
        "name": "inceptionv3",
        "study_name": "InceptionV3",
        "timm_name": "inception_v3.tf_in1k",
        "n_parameters": 21_785_568,
        "n_with_head": 21_785_568 + 2048 + 1,
        "n_statistics": 34_432,
        "input_px": 299,
        "min_px": 75,
        "weights": "imagenet",
        "n_keras": 21_768_352,  # as Keras' summary prints it
        "likeness": "equal in layers",
        "reason": "a scale in each batch norm, which the next layer cancels",
    }
    # Keras' summaries: trainable parameters without top
    assert (rows["resnet50"]["n_keras"], rows["resnet101v2"]["n_keras"]) == (23_534_592, 42_528_896)
    assert rows["inception_resnet_v2"]["n_keras"] == 54_276_192
    assert [name for name, row in rows.items() if row["reason"]] == [
        *("resnet50", "resnet101v2", "inceptionv3", "inception_resnet_v2")
    ]
    assert [name for name, row in rows.items() if row["likeness"] == "equal in numbers"] == [
        *("vgg16", "inception_resnet_v2", "densenet169", "nasnet_mobile", "efficientnetb4")
    ]
    assert [name for name, row in rows.items() if row["weights"] == "none"] == ["nasnet_mobile"]


def test_the_listing_counts_the_studys_head_of_efficientnetb4() -> None:
    with_head = {row["name"]: row["n_with_head"] for row in registry.listing(dense=1024)}
    assert with_head["efficientnetb4"] == 19_385_673
    assert {row["name"]: row["n_with_head"] for row in registry.listing()}[
        "efficientnetb4"
    ] == 17_550_409


@pytest.mark.parametrize("name", TRAINABLE)
def test_timm_knows_every_tag_and_its_size(name: str) -> None:
    row = registry.BACKBONES[name]
    registry.check_name("vgg16")
    settings = timm.models.get_pretrained_cfg(row.timm_name)
    assert settings.input_size == (3, row.input_px, row.input_px)
    assert bool(settings.has_weights) == row.weights


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet5", "Unknown backbone 'resnet5'. Did you mean 'resnet50'?"),
        ("zzz", "Known: densenet169, efficientnetb4"),
        ("timm:resnet10", "Unknown backbone 'timm:resnet10'. Did you mean 'timm:resnet1"),
        ("timm:resnet50.tv_in1", "Did you mean 'timm:resnet50.tv_in1k'?"),
        ("timm:qqqqqqqqqq", "timm.list_models()"),
        ("timm:", "timm.list_models()"),
        ("timm:xception", "Did you mean 'timm:"),
        ("resnet18", "For another network of timm use 'timm:NAME'."),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(UsageError) as text:
        registry.check_name(name)
    assert message in str(text.value)


@pytest.mark.parametrize(
    "name", ["xception", "nasnet_mobile", "timm:resnet10t", "timm:resnet50.a1_in1k"]
)
def test_a_known_name_passes(name: str) -> None:
    registry.check_name(name)


@pytest.mark.parametrize(
    ("name", "px", "message"),
    [
        ("inceptionv3", 74, "image_px must be at least 75 for 'inceptionv3'; got 74."),
        ("vgg16", 31, "at least 32 for 'vgg16'; got 31."),
        pytest.param(
            "timm:inception_v4",
            64,
            "image_px must be at least 75 for 'timm:inception_v4'; got 64",
            marks=pytest.mark.slow,
        ),
        ("timm:vit_tiny_patch16_224", 96, "must be at least 224 for"),
        (
            "timm:vit_tiny_patch16_224",
            256,
            "image_px 256 is not supported by 'timm:vit_tiny_patch16_224'. Use 224 ",
        ),
    ],
)
def test_an_invalid_size_is_refused_with_a_valid_one(name: str, px: int, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        input_size.check_size(name, px)


@pytest.mark.parametrize(
    ("name", "px"),
    [
        ("inceptionv3", 75),
        ("vgg16", 32),
        pytest.param("timm:inception_v4", 75, marks=pytest.mark.slow),
        ("timm:resnet10t", 300),
    ],
)
def test_a_size_that_goes_through_is_accepted(name: str, px: int) -> None:
    input_size.check_size(name, px)


def test_a_transformer_and_layers_behind_the_pooling_train_all_their_parameters() -> None:
    for name, px in (("timm:vit_tiny_patch16_224", 224), ("timm:mobilenetv3_small_050", 64)):
        model = build_on_meta(name)
        model(torch.empty(2, 3, px, px, device="meta")).sum().backward()
        assert [path for path, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("xception", HALF),
        ("vgg16", IMAGENET),
        ("resnet50", IMAGENET),
        ("resnet101v2", HALF),
        ("inceptionv3", HALF),
        ("inception_resnet_v2", HALF),
        ("mobilenetv2", IMAGENET),
        ("densenet169", IMAGENET),
        ("nasnet_mobile", HALF),
        ("efficientnetb4", IMAGENET),
        ("timm:resnet10t", IMAGENET),
    ],
)
def test_normalisation_is_that_of_timms_weights(
    name: str, expected: tuple[tuple[float, ...], ...]
) -> None:
    assert build.normalisation(name, "none") == expected


# Weights from a folder.


def saved(architecture: str, folder: Path, **arguments: Any) -> str:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        network = timm.create_model(architecture, **arguments)
    timm.models.save_for_hf(network, str(folder), safe_serialization=True)
    return f"local-dir:{folder}"


def rewrite(folder: Path, changes: dict[str, torch.Tensor | None]) -> None:
    tensors = load_file(folder / "model.safetensors") | {
        k: v for k, v in changes.items() if v is not None
    }
    save_file(
        {k: v for k, v in tensors.items() if changes.get(k, v) is not None},
        folder / "model.safetensors",
    )


def test_weights_from_a_folder_come_back_exactly_without_their_classifier(tmp_path: Path) -> None:
    weights = saved("resnet10t", tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    loaded = build_model("timm:resnet10t", weights=weights).backbone.state_dict()
    assert set(stored) - set(loaded) == {"fc.weight", "fc.bias"}
    assert all(torch.equal(v, stored[k]) for k, v in loaded.items())


@pytest.mark.parametrize("name", ["timm:resnet10t", *registry.BACKBONES])
def test_a_backbone_of_ours_that_timm_saved_comes_back_exactly(name: str, tmp_path: Path) -> None:
    ours = build_model(name, in_channels=1, seed=9).backbone
    timm.models.save_for_hf(ours, str(tmp_path), safe_serialization=True)
    assert same(ours, build_model(name, weights=f"local-dir:{tmp_path}", in_channels=1).backbone)


def test_colour_weights_in_a_gray_network_are_summed_over_the_colours(tmp_path: Path) -> None:
    weights = saved("resnet10t", tmp_path)
    stored = load_file(tmp_path / "model.safetensors")["conv1.0.weight"]
    gray = build_model("timm:resnet10t", weights=weights, in_channels=1).backbone
    torch.testing.assert_close(gray.conv1[0].weight, stored.sum(1, keepdim=True))


def test_the_identity_of_a_folder_follows_its_content_and_not_its_place(tmp_path: Path) -> None:
    weights = saved("resnet10t", tmp_path / "a")
    elsewhere = saved("resnet10t", tmp_path / "b")
    identity = build.weights_id("timm:resnet10t", weights)
    assert re.fullmatch(r"local-dir:[0-9a-f]{12}", identity)
    assert identity == build.weights_id("timm:resnet10t", elsewhere)
    rewrite(tmp_path / "a", {"bn1.bias": torch.ones(64)})
    assert identity != build.weights_id("timm:resnet10t", weights)
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    config["pretrained_cfg"]["mean"] = [0.1, 0.2, 0.3]
    (tmp_path / "b" / "config.json").write_text(json.dumps(config))
    assert identity != build.weights_id("timm:resnet10t", elsewhere)
    assert build.normalisation("timm:resnet10t", elsewhere)[0] == (0.1, 0.2, 0.3)


def test_a_missing_weight_is_an_error_and_never_a_random_start(tmp_path: Path) -> None:
    weights = saved("resnet10t", tmp_path)
    rewrite(tmp_path, {"layer1.0.conv1.weight": None})
    for attempt in (
        lambda: build.weights_id("timm:resnet10t", weights),
        lambda: build_model("timm:resnet10t", weights=weights),
    ):
        with pytest.raises(WeightsError, match=r"layer1\.0\.conv1\.weight"):
            attempt()


def test_a_folder_that_does_not_fit_is_reported_in_one_line(tmp_path: Path) -> None:
    weights = saved("resnet10t", tmp_path / "small")
    record = {
        "requires those of 'resnet50'": ("resnet50", weights),
        "not a folder: ": ("vgg16", f"local-dir:{tmp_path / 'nowhere'}"),
        "config.json and model.safetensors not found in": ("vgg16", f"local-dir:{tmp_path}"),
    }
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "config.json").write_text("[]")
    (tmp_path / "list" / "model.safetensors").write_bytes(b"")
    record["config.json is not a file of timm"] = ("vgg16", f"local-dir:{tmp_path / 'list'}")
    saved("resnet10t", tmp_path / "torn")
    (tmp_path / "torn" / "model.safetensors").write_bytes(b"torn")
    record["do not fit 'timm:resnet10t'"] = ("timm:resnet10t", f"local-dir:{tmp_path / 'torn'}")
    for message, (name, folder) in record.items():
        with pytest.raises(WeightsError, match=re.escape(message)) as caught:
            build.weights_id(name, folder)
        assert "\n" not in str(caught.value)


def test_weights_that_may_not_be_read_are_not_called_missing(
    tmp_path: Path, refuse: Callable[[Path], None]
) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).touch()
    refuse(tmp_path / "model.safetensors")
    with pytest.raises(
        WeightsError, match=f"Cannot read '{tmp_path / 'model.safetensors'}': permission denied"
    ):
        pretrained.find_folder(f"local-dir:{tmp_path}")


@pytest.mark.parametrize("weights", ["imagenett", "local-dir:", "", "none:x"])
def test_weights_that_are_invalid_are_refused(weights: str) -> None:
    for attempt in (build.weights_id, build.normalisation):
        with pytest.raises(UsageError, match="Unknown weights"):
            attempt("vgg16", weights)


# Weights from the hub, without a network.


@pytest.fixture
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Empty caches, and a machine on which no name can be looked up: nothing leaves it."""
    import huggingface_hub

    def no_network(*_address: Any, **_options: Any) -> None:
        raise socket.gaierror("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "where", "cache"),
    [
        ("resnet50", "timm/resnet50.tv_in1k", "HF_HOME"),
        ("xception", "legacy_xception.tf_in1k", "TORCH_HOME"),
    ],
)
@pytest.mark.parametrize("offline", [True, False])
def test_without_a_network_imagenet_weights_are_a_quick_error_with_ways_out(
    name: str,
    where: str,
    cache: str,
    offline: bool,
    empty_caches: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    for attempt in (
        lambda: build.weights_id(name, "imagenet"),
        lambda: build_model(name, weights="imagenet"),
    ):
        start = time.monotonic()
        with pytest.raises(WeightsError) as text:
            attempt()
        assert time.monotonic() - start < 5
        message = str(text.value)
        assert message.startswith(f"Weights 'imagenet' of '{name}' ({where}) are not in the cache")
        assert ("HF_HUB_OFFLINE is set" in message) == offline
        assert f"set {cache} to a cache that has them" in message
        assert '"local-dir:DIR" or "none"' in message
        assert "\n" not in message


def test_nasnet_mobile_has_no_imagenet_weights(empty_caches: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"No pretrained weights of 'nasnet_mobile' exist in timm.* \"none\""
    ):
        build.weights_id("nasnet_mobile", "imagenet")
    with pytest.raises(WeightsError, match="No pretrained weights of 'nasnet_mobile'"):
        build_model("nasnet_mobile", weights="imagenet")


def fill_hub(cache: Path, repository: str, file: Path) -> None:
    """Lay a file into the hub's cache, whose form is refs/main -> snapshots/COMMIT/FILE."""
    folder = cache / "hub" / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("c0ffee")
    (folder / "snapshots" / "c0ffee").mkdir(parents=True)
    file.rename(folder / "snapshots" / "c0ffee" / "model.safetensors")


def test_cached_imagenet_weights_are_taken_without_asking_anyone(empty_caches: Path) -> None:
    saved("mobilenetv2_100", empty_caches)
    stored = load_file(empty_caches / "model.safetensors")
    fill_hub(empty_caches, "timm/mobilenetv2_100.ra_in1k", empty_caches / "model.safetensors")
    assert build.weights_id("mobilenetv2", "imagenet") == "imagenet:mobilenetv2_100.ra_in1k"
    loaded = build_model("mobilenetv2", weights="imagenet").backbone.state_dict()
    assert set(stored) - set(loaded) == {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(v, stored[k]) for k, v in loaded.items())


def test_the_identity_of_a_timm_name_without_a_tag_names_the_tag(empty_caches: Path) -> None:
    saved("resnet10t", empty_caches)
    fill_hub(empty_caches, "timm/resnet10t.c3_in1k", empty_caches / "model.safetensors")
    assert build.weights_id("timm:resnet10t", "imagenet") == "imagenet:resnet10t.c3_in1k"


def test_cached_weights_with_a_hole_are_an_error(empty_caches: Path) -> None:
    saved("mobilenetv2_100", empty_caches)
    rewrite(empty_caches, {"conv_head.weight": None})
    fill_hub(empty_caches, "timm/mobilenetv2_100.ra_in1k", empty_caches / "model.safetensors")
    with pytest.raises(WeightsError, match=r"do not fit 'mobilenetv2' .*conv_head.weight"):
        build_model("mobilenetv2", weights="imagenet")


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_xceptions_pth_is_read_as_tensors_only(empty_caches: Path) -> None:
    file = empty_caches / "torch" / "hub" / "checkpoints" / "xception-43020ad28.pth"
    file.parent.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        network = timm.create_model("legacy_xception")
    torch.save(network.state_dict(), file)
    assert build.weights_id("xception", "imagenet") == "imagenet:legacy_xception.tf_in1k"
    ours = build_model("xception", weights="imagenet").backbone
    assert torch.equal(ours.conv4.pointwise.weight, network.conv4.pointwise.weight)
    assert "state_dict" not in ours.pretrained_cfg
    torch.save({"conv1.weight": Harmful(empty_caches / "touched")}, file)
    with pytest.raises(WeightsError, match="do not fit 'xception'"):
        build_model("xception", weights="imagenet")
    assert not (empty_caches / "touched").exists()


def test_two_processes_that_want_the_same_weights_download_them_once(tmp_path: Path) -> None:
    requested: list[str] = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.end_headers()

        def do_GET(self) -> None:
            requested.append(self.path)
            time.sleep(0.5)  # the other comes meanwhile
            self.send_response(200)
            self.send_header("Content-Length", "7")
            self.end_headers()
            self.wfile.write(b"weights")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        program = (
            "from casting_tune.models.pretrained import Source, fetch\n"
            f"address = 'http://127.0.0.1:{server.server_port}/network.pth'\n"
            "source = Source(backbone='b', tag='network', repository='', address=address)\n"
            "print(fetch(source).read_bytes())"
        )
        environment = os.environ | {"TORCH_HOME": str(tmp_path)}
        both = [
            subprocess.Popen(
                [sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment
            )
            for _ in range(2)
        ]
        output = [process.communicate(timeout=100)[0].strip() for process in both]
        server.shutdown()
        thread.join()
    assert output == [b"b'weights'"] * 2
    assert requested == ["/network.pth"]
