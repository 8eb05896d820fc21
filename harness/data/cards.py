"""Dataset cards: everything about a dataset that is the same for every method. No torch.

A card fixes classes, list files, label handling, metric and one train and one test pipeline; a method
only says which frames it wants (`harness.contract.declarations.ClipRequest`). The counts, list formats and frame
templates of the real sets follow docs/data.md#lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Literal

from harness.errors import UsageError, unknown

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
SIZES = ("tiny", "paper")
CSV_PREFIX = "csv:"
Pipeline = Literal["harness", "authors"]
EMBEDDED_VERSION = 1
"""Raised when a picture of an embedded set changes: then all results on the sets are made anew."""


@dataclass(frozen=True)
class Geometry:
    """Spatial size of the clips at one size of the networks."""

    resize: int | None
    """The shorter side is resized to this many pixels; None keeps the stored frames."""
    crop: int
    """Side of the square crop, in pixels: the resolution that the recognizer sees."""

    def __post_init__(self) -> None:
        if self.resize is not None and self.resize < self.crop:
            raise UsageError(f"geometry: the resized side {self.resize} is smaller than the crop {self.crop}")


@dataclass(frozen=True)
class DatasetCard:
    """What is known of a dataset."""

    name: str
    title: str
    summary: str
    """One line for `bench.py list`."""
    kind: Literal["embedded", "videos", "frames"]
    """`embedded`: rendered locally; `videos`: video files; `frames`: JPEG folders. Lists of the real sets
    may name either: an entry with a video suffix is decoded as a video."""
    metric: Literal["top1", "mAP"]
    num_classes: int
    """0 for `csv:`, where the file says it."""
    classes: tuple[str, ...] = ()
    """Class names by index; the real sets read them from their class file when opened."""
    splits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Split -> accepted list files below DATA_ROOT/NAME, the first that exists is read."""
    class_files: tuple[str, ...] = ()
    templates: tuple[str, ...] = ("{:05d}.jpg",)
    """Accepted names of frame i (1-based); the first that a folder holds is used for the whole set."""
    multi_label: bool = False
    """Lists hold up to three labels per video, kept sorted; every training clip draws the one that it is trained on."""
    min_frames: int = 1
    """Shorter videos are dropped from every split, as the published lists' readers do."""
    flip: bool = True
    crop_family: Literal["multiscale", "shift", "centre"] = "multiscale"
    jitter: bool = False
    """Contrast and colour jitter in training."""
    geometry: Mapping[str, Geometry] = field(
        default_factory=lambda: {"tiny": Geometry(128, 112), "paper": Geometry(256, 224)}
    )
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    fps: float | None = None
    """Frame rate where it is one; the published frame folders of the video sets have native rates."""
    pretraining: Literal["stills", "imagenet"] | None = "imagenet"
    disclosures: tuple[str, ...] = ()
    """What a reader of figures on this set must know; shown in every report."""
    pipeline: Pipeline = "harness"
    """How stored frames become crops; the protocol chooses (`harness.data.transforms`)."""
    version: int = 1
    """Raised when the data or the pipeline change; part of the fingerprint."""

    @property
    def template(self) -> str:
        """The frame template: the first accepted one, or the one found when the set was opened."""
        return self.templates[0]


def dataset_card(name: str) -> DatasetCard:
    """The card of a dataset id or of `csv:PATH`; an unknown id raises UsageError with the nearest."""
    if name.startswith(CSV_PREFIX):
        return csv_card(name)
    try:
        return CARDS[name]
    except KeyError:
        raise unknown("dataset", name, [*CARDS, "csv:PATH"]) from None


def dataset_summaries() -> dict[str, str]:
    """Dataset id -> one-line description, for `bench.py list`."""
    return {name: card.summary for name, card in CARDS.items()} | {
        "csv:PATH": "any videos: a CSV with columns path, label (optional: class, frames, split); "
        "--train/--test COLUMN=VALUE or --folds COLUMN"
    }


def csv_card(name: str) -> DatasetCard:
    """The card of `csv:PATH`; classes follow when the file is read.

    It is called by the last two parts of the path: a record does not depend on where the data lie.
    """
    if not name.removeprefix(CSV_PREFIX):
        raise UsageError("csv: needs a path: csv:videos/labels.csv")
    title = "/".join(PurePath(name.removeprefix(CSV_PREFIX)).parts[-2:])
    return DatasetCard(
        name=CSV_PREFIX + title,
        title=title,
        summary="videos listed in a CSV file",
        kind="videos",
        metric="top1",
        num_classes=0,
        disclosures=("Clips are resized on the shorter side and cropped; class information in the videos' size "
                     "or length is not removed.",),
    )


def _embedded(name: str, title: str, summary: str, classes: tuple[str, ...]) -> DatasetCard:
    return DatasetCard(
        name=name, title=title, summary=summary, kind="embedded", metric="top1",
        num_classes=len(classes), classes=classes, flip=False, crop_family="shift", jitter=True,
        geometry={"tiny": Geometry(None, 64), "paper": Geometry(256, 224)}, fps=8.0, pretraining="stills",
        version=EMBEDDED_VERSION,
        disclosures=(
            "Synthetic videos, rendered locally from the scikit-learn digits; no claim about real video follows.",
            "Backbones of every method are pre-trained on the same rendered stills of training digits on the "
            "target's orange plate, which shows them the target's colour.",
        ),
    )


MOTION_PAIRS = ((0, 1), (2, 3), (4, 5), (6, 7))
"""glyphs-motion: the digit pairs; class 2p shows pair p as written, class 2p + 1 in the opposite order."""

_THREE_LABELS = "Label numbers and label maps must be of one origin; the label map is part of the fingerprint."

CARDS: dict[str, DatasetCard] = {
    card.name: card
    for card in (
        _embedded("glyphs", "Glyphs (spot)", "embedded, 10 classes: which digit is on the moving plate; where and "
                  "when to look matters", tuple(str(digit) for digit in range(10))),
        _embedded("glyphs-motion", "Glyphs (order)", "embedded, 8 classes: which of two digits the plate shows "
                  "first; temporal order matters (50 % without it)",
                  tuple(f"{a} then {b}" for pair in MOTION_PAIRS for a, b in (pair, pair[::-1]))),
        DatasetCard(
            "activitynet", "ActivityNet-v1.3", "200 classes, 10,024 / 4,926 videos, mAP", "frames", "mAP", 200,
            splits={"train": ("actnet_train_split.txt", "anet_train_video.txt"),
                    "test": ("actnet_val_split.txt", "anet_val_video_multi_label.txt")},
            class_files=("classInd.txt", "activitynet.txt"), templates=("image_{:05d}.jpg", "img_{:05d}.jpg"),
            multi_label=True, version=2, min_frames=3,
            disclosures=("The official validation split is the test split, as in the papers.", _THREE_LABELS),
        ),
        DatasetCard(
            "fcvid", "FCVID", "239 classes, 45,611 / 45,612 videos, mAP", "frames", "mAP", 239,
            splits={"train": ("fcvid_train_split.txt",), "test": ("fcvid_val_split.txt", "fcvid_test_split.txt")},
            class_files=("classInd.txt",), templates=("image_{:05d}.jpg", "img_{:05d}.jpg"),
            multi_label=True, version=2, min_frames=3, disclosures=(_THREE_LABELS,),
        ),
        DatasetCard(
            "mini-kinetics", "Mini-Kinetics", "200 classes, 121,215 / 9,867 videos, top-1", "frames", "top1", 200,
            splits={"train": ("mini_train_videofolder.txt", "mini_kinetics_train.txt"),
                    "test": ("mini_val_videofolder.txt", "mini_kinetics_val.txt")},
            class_files=("minik_classInd.txt", "classInd.txt"),
            templates=("image_{:05d}.jpg", "img_{:05d}.jpg", "{:05d}.jpg"), min_frames=3,
            disclosures=("AR-Net's 200 classes, which are not those of s9xie/Mini-Kinetics-200.",
                         "The official validation split is the test split, as in the papers."),
        ),
        DatasetCard(
            "sthv1", "Something-Something V1", "174 classes, 86,017 / 11,522 videos, top-1", "frames", "top1", 174,
            splits={"train": ("train_videofolder.txt", "train_split.txt"),
                    "test": ("val_videofolder.txt", "validation_split.txt")},
            class_files=("category.txt", "classInd.txt"), templates=("{:05d}.jpg",), flip=False, fps=12.0,
            min_frames=3,
            disclosures=("AdaFuse numbers the classes differently from TSM and AdaFocus; use one origin's files.",
                         "The official validation split is the test split, as in the papers."),
        ),
        DatasetCard(
            "sthv2", "Something-Something V2", "174 classes, 168,913 / 24,777 videos, top-1", "frames", "top1", 174,
            splits={"train": ("train_videofolder.txt",), "test": ("val_videofolder.txt",)},
            class_files=("category.txt", "classInd.txt"), templates=("{:06d}.jpg", "{:05d}.jpg"), flip=False, fps=12.0,
            min_frames=3, disclosures=("The official validation split is the test split, as in the papers.",),
        ),
        DatasetCard(
            "jester", "Jester", "27 classes, 118,562 / 14,787 videos, top-1", "frames", "top1", 27,
            splits={"train": ("train_videofolder.txt", "train_split.txt"),
                    "test": ("val_videofolder.txt", "validation_split.txt")},
            class_files=("category.txt", "classInd.txt"), templates=("{:05d}.jpg",), flip=False, fps=12.0,
            min_frames=3, disclosures=("The official validation split is the test split, as in the papers.",),
        ),
        DatasetCard(
            "kinetics400", "Kinetics-400", "400 classes, frame folders or video files, top-1", "frames", "top1", 400,
            splits={"train": ("train_videofolder.txt", "kinetics400_train_list_videos.txt"),
                    "test": ("val_videofolder.txt", "kinetics400_val_list_videos.txt")},
            class_files=("classInd.txt", "kinetics400.txt"), templates=("img_{:05d}.jpg",), min_frames=3,
            disclosures=("Many videos of Kinetics have disappeared; figures depend on which are left.",
                         "The official validation split is the test split, as in the papers."),
        ),
        DatasetCard(
            "diving48", "Diving48 (V2 labels)", "48 classes, video files with lists `path label`, top-1", "videos",
            "top1", 48,
            splits={"train": ("diving48_train_list_videos.txt", "train_videofolder.txt"),
                    "test": ("diving48_val_list_videos.txt", "test_videofolder.txt")},
            class_files=("classInd.txt", "diving48.txt"), templates=("img_{:05d}.jpg",),
            disclosures=("No public AdaFocus code or list exists for Diving48; the split is the dataset's own.",),
        ),
    )
}
