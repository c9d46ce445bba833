"""The backbones: names, sizes and what else is known of each without building it.

Input: a name of `BACKBONES`, or `timm:NAME` for any other network of timm. Output: its description.
Functions import timm when they are called, so that names and the listing cost nothing.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from casting_tune.errors import UsageError, unknown
from casting_tune.models import light_import

NUMBERS = "equal in numbers"
LAYERS = "equal in layers"
BIASES = "no biases before batch norm, which cancels them"
SCALES = "a scale in each batch norm, which the next layer cancels"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """Description of one backbone.

    Attributes:
        timm_name: network and pretrained tag in timm.
        study_name: name in the study's tables.
        n_parameters: trainable ones, without top, for three input channels.
        n_statistics: running means and variances of batch norm, which Keras counts as not
            trainable.
        n_features: channels of the last maps, which are the input of the head.
        input_px: side of the images that timm's weights were trained on.
        likeness: to Keras' network. "equal in numbers": with Keras' weights the outputs are equal.
            "equal in layers": padding or stride differ, or as in `reason`.
        n_more: trainable parameters more than in Keras' network (negative: fewer).
        reason: why the numbers of parameters differ; "" if they are equal.
        min_px: smallest side of a training image: every layer still has an input.
        weights: whether timm has pretrained weights.
        cpu_bf16: whether bf16 makes a training step faster on a CPU with bf16 instructions.
            Measured with one thread, 96 px, batch size 8, AMD EPYC with avx512_bf16, torch 2.14:
            1.2 to 2.2 times faster, but 0.77 to 0.83 times with depthwise convolutions (three
            networks).
        without: a part of timm's network after the last maps that is removed, because Keras'
            network without top does not have it.
    """

    timm_name: str
    study_name: str
    n_parameters: int
    n_statistics: int
    n_features: int
    input_px: int
    likeness: str
    n_more: int = 0
    reason: str = ""
    min_px: int = 32
    weights: bool = True
    cpu_bf16: bool = True
    without: str = ""


BACKBONES: dict[str, Backbone] = {
    "xception": Backbone(
        timm_name="legacy_xception.tf_in1k",
        study_name="Xception",
        n_parameters=20_806_952,
        n_statistics=54_528,
        n_features=2048,
        input_px=299,
        likeness=LAYERS,
    ),
    "vgg16": Backbone(
        timm_name="vgg16.tv_in1k",
        study_name="VGG16",
        n_parameters=14_714_688,
        n_statistics=0,
        n_features=512,
        input_px=224,
        likeness=NUMBERS,
        without="pre_logits",
    ),
    "resnet50": Backbone(
        timm_name="resnet50.tv_in1k",
        study_name="ResNet50",
        n_parameters=23_508_032,
        n_statistics=53_120,
        n_features=2048,
        input_px=224,
        likeness=LAYERS,
        n_more=-26_560,
        reason=BIASES,
    ),
    "resnet101v2": Backbone(
        timm_name="resnetv2_101.a1h_in1k",
        study_name="ResNet101V2",
        n_parameters=42_492_480,
        n_statistics=97_664,
        n_features=2048,
        input_px=224,
        likeness=LAYERS,
        n_more=-36_416,
        reason=BIASES,
    ),
    "inceptionv3": Backbone(
        timm_name="inception_v3.tf_in1k",
        study_name="InceptionV3",
        n_parameters=21_785_568,
        n_statistics=34_432,
        n_features=2048,
        input_px=299,
        likeness=LAYERS,
        n_more=17_216,
        reason=SCALES,
        min_px=75,
    ),
    "inception_resnet_v2": Backbone(
        timm_name="inception_resnet_v2.tf_in1k",
        study_name="InceptionResNetV2",
        n_parameters=54_306_464,
        n_statistics=60_544,
        n_features=1536,
        input_px=299,
        likeness=NUMBERS,
        n_more=30_272,
        reason=SCALES,
        min_px=75,
    ),
    "mobilenetv2": Backbone(
        timm_name="mobilenetv2_100.ra_in1k",
        study_name="MobileNetV2",
        n_parameters=2_223_872,
        n_statistics=34_112,
        n_features=1280,
        input_px=224,
        likeness=LAYERS,
        cpu_bf16=False,
    ),
    "densenet169": Backbone(
        timm_name="densenet169.tv_in1k",
        study_name="DenseNet169",
        n_parameters=12_484_480,
        n_statistics=158_400,
        n_features=1664,
        input_px=224,
        likeness=NUMBERS,
    ),
    "nasnet_mobile": Backbone(
        timm_name="casting_nasnet_mobile",
        study_name="NASNetMobile",
        n_parameters=4_232_978,
        n_statistics=36_738,
        n_features=1056,
        input_px=224,
        likeness=NUMBERS,
        weights=False,
        cpu_bf16=False,
    ),
    "efficientnetb4": Backbone(
        timm_name="tf_efficientnet_b4.aa_in1k",
        study_name="EfficientNetB4",
        n_parameters=17_548_616,
        n_statistics=125_200,
        n_features=1792,
        input_px=380,
        likeness=NUMBERS,
        cpu_bf16=False,
    ),
}


@cache  # called once per cell, and a sweep has many cells of a network
def check_name(name: str) -> None:
    """Raise UsageError unless a name is in `BACKBONES`, or `timm:` and a network of timm."""
    if name in BACKBONES:
        return
    if not name.startswith("timm:"):
        raise UsageError(
            f"{unknown('backbone', name, BACKBONES)} For another network of timm use 'timm:NAME'."
        )
    wanted = name.removeprefix("timm:")
    if wanted in _source_names():
        return
    timm = timm_networks()
    network, _, tag = wanted.partition(".")
    networks = timm.list_models()  # without deprecated names, which cause a warning
    tags = timm.list_pretrained(f"{network}.*")
    if network in networks and (not tag or wanted in tags):
        return
    near = difflib.get_close_matches(wanted, tags if network in networks else networks, n=1)
    hint = (
        f"Did you mean 'timm:{near[0]}'?"
        if near
        else f"timm.list_models() lists all networks of timm {timm.__version__}."
    )
    raise UsageError(f"Unknown backbone '{name}'. {hint}")


@cache
def _source_names() -> frozenset[str]:
    """Return the networks in timm's source code; importing timm for the same list takes seconds."""
    package = importlib.util.find_spec("timm")
    folders = package.submodule_search_locations if package else None
    files = [file for folder in folders or [] for file in (Path(folder) / "models").glob("*.py")]
    return frozenset(
        name
        for file in files
        for name in re.findall(r"^@register_model\s+def (\w+)\(", file.read_text("utf-8"), re.M)
    )


def listing(*, dense: int = 0) -> list[dict[str, Any]]:
    """Return one row per backbone, for three channels.

    `n_parameters` counts without top; `n_with_head` counts all trainable parameters with a dense
    layer of that width (0 is none) and the logit.
    """
    return [
        {
            "name": name,
            "study_name": backbone.study_name,
            "timm_name": backbone.timm_name,
            "n_parameters": backbone.n_parameters,
            "n_with_head": backbone.n_parameters + _n_head(backbone.n_features, dense),
            "n_keras": backbone.n_parameters - backbone.n_more,
            "n_statistics": backbone.n_statistics,
            "input_px": backbone.input_px,
            "min_px": backbone.min_px,
            "weights": "imagenet" if backbone.weights else "none",
            "likeness": backbone.likeness,
            "reason": backbone.reason,
        }
        for name, backbone in BACKBONES.items()
    ]


def _n_head(n_features: int, dense: int) -> int:
    hidden = n_features * dense + dense
    return hidden + (dense or n_features) + 1


def timm_name(name: str) -> str:
    """Return the network and pretrained tag in timm."""
    return BACKBONES[name].timm_name if name in BACKBONES else name.removeprefix("timm:")


def timm_networks() -> Any:
    """Return the timm module with our NASNet-A Mobile registered."""
    with light_import.imports():
        import timm

    from casting_tune.models import nasnet

    nasnet.register()
    return timm
