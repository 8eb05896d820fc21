"""From a request (methods x datasets x seeds) to the work it takes: artifacts, evaluations, latencies."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

from harness.contract.declarations import EMPTY, InitFrom, Stage, below
from harness.contract.names import DATA_SETTINGS, split_name, written
from harness.contract.recognizer import EfficientRecognizer
from harness.contract.registry import method_card, recognizer_class
from harness.contract.values import plain
from harness.data.glyphs import parameters
from harness.errors import UsageError, unknown
from harness.layers.backbones import IMAGENET_FILES
from harness.plan.building import build_recognizer, constructor_settings, full_settings, setting_defaults
from harness.plan.overrides import Overrides
from harness.plan.pretraining import CLASSES, PRETRAINING, pretraining_stage
from harness.plan.protocol import Protocol
from harness.plan.recipes import Recipe, adapted, paper_recipe
from harness.plan.timing import Clock, budgeted
from harness.plan.units import DataSpec, EvalSpec, Spec, TrainSpec, Weights, training_part

STAGE_FIELDS = get_type_hints(Stage)
STAGE_IDENTITY = ("name", "method", "method_settings")
TINY_EPOCH = 240
"""Samples in an epoch of a tiny recipe, at least: a small data set is gone through several times."""


@dataclass(frozen=True)
class Cell:
    """One method on one data set with one seed: what the user sees as one line."""

    method: str
    data: DataSpec
    seed: int
    train: tuple[TrainSpec, ...]
    evaluation: EvalSpec

    @property
    def specs(self) -> tuple[Spec, ...]:
        """All its work, in order."""
        return (*self.train, self.evaluation)


class Planner:
    """Resolves recipes into keyed work for one data set.

    Args:
        data: How the data set was opened.
        videos: The opened VideoSet (fingerprint, classes, resolution).
        protocol: Of the comparison.
        size: tiny or paper.
        weights_dir: Where ImageNet files lie; None where none are there.
        overrides: Changes to settings and recipes.
        clock: Where segments are timed; needed where budgets are in milliseconds.
    """

    def __init__(
        self,
        data: DataSpec,
        videos: Any,
        protocol: Protocol,
        *,
        size: str,
        weights_dir: Path | None = None,
        overrides: Overrides | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.data, self.videos, self.protocol, self.size = data, videos, protocol, size
        self.weights_dir, self.clock = weights_dir, clock
        self.overrides = overrides or Overrides()
        self.stage_names: set[str] = set()
        """Names of all stages planned so far."""
        self._built: dict[str, EfficientRecognizer] = {}

    def cell(self, asked: str, seed: int) -> Cell:
        """All work behind one method and seed, in the order it must be done.

        The method goes by its shortest name: settings in the asked one that say what holds anyway are left out.
        """
        method = self._shortest(asked)
        train = self.chain(method, seed, {}, asked=asked)
        last, settings = train[-1], self.settings(method, asked=asked)
        exits = self._recognizer(method, settings).exits  # settings that it cannot have are told here
        evaluation = EvalSpec(
            method=method,
            size=self.size,
            settings=settings,
            artifact=last.key,
            chain=tuple(s.key for s in train),
            own_chain=tuple(s.key for s in train if s.method == last.method),
            data=self.data,
            fingerprint=self.videos.fingerprint,
            seed=seed,
            initialisation=last.initialisation,
            **budgeted(self.protocol, exits, self.clock),
        )
        return Cell(method, self.data, seed, train, evaluation)

    def chain(
        self, method: str, seed: int, changes: Mapping[str, Any], *, asked: str | None = None
    ) -> tuple[TrainSpec, ...]:
        """All training artifacts of a method, what they need first; the last is the method's own.

        Settings that act at test time only have their defaults there, so that one training serves them all.

        Args:
            method: What is trained.
            seed: Of the training.
            changes: Settings that differ from the method's at this size.
            asked: The name by which it was asked for, which takes overrides; None for what another method needs.
        """
        at_test = recognizer_class(method).test_settings
        method = _without(method, at_test)
        changes = {name: value for name, value in changes.items() if name not in at_test}
        recipe = paper_recipe(method, self.data.name, self.size)
        settings = self.settings(method, changes, asked=asked, keep=at_test)
        done: dict[str, TrainSpec] = {}
        own: dict[str, TrainSpec] = {}
        recognizer = self._recognizer(method, settings)
        for stage in self._stages(method, recognizer, recipe):
            if stage.method is not None:
                done.update((s.key, s) for s in self.chain(stage.method, seed, stage.method_settings))
                continue
            self.stage_names.add(stage.name)
            stage = self._stage(stage, asked is not None)
            _check_modules(method, stage, recognizer)
            weights, needed = self._weights(method, stage, own, seed)
            done.update((s.key, s) for s in needed)
            source = self._source(stage, weights, own, needed)
            spec = TrainSpec(
                method=method,
                method_version=method_card(method).version,
                settings=settings,
                stage=plain(stage),
                weights=weights,
                data=self.data,
                fingerprint=self.videos.fingerprint,
                seed=seed,
                training=training_part(self.protocol),
                initialisation=source,
            )
            own[stage.name] = spec
            done[spec.key] = spec
        return tuple(done.values())

    def _stages(self, method: str, recognizer: EfficientRecognizer, recipe: Recipe | None) -> Sequence[Stage]:
        """The paper's stages where there are any, else the method's own.

        What they say of modules that these settings leave out goes. A variant that is trained in other stages
        than its method (V1+) keeps its own; a stage that leaves `init` out starts as the method's own stage of
        that name.
        """
        own = {stage.name: stage for stage in recognizer.recipe(self.size)}
        stages = recipe.stages if recipe is not None else ()
        if recipe is not None and recipe.method != method and [s.name for s in stages] != list(own):
            stages = ()
        names = {name for named in (recognizer.named_modules(), recognizer.named_parameters()) for name, _ in named}
        stages = adapted(stages, names)
        return [s if s.init or s.name not in own else replace(s, init=own[s.name].init) for s in stages or own.values()]

    def settings(
        self, method: str, changes: Mapping[str, Any] = EMPTY, *, asked: str | None = None, keep: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Constructor settings of a method on this data set; what its class sets anyway is left to it.

        Args:
            method: Its name.
            changes: Settings that differ from the method's, and the recipe's, at this size.
            asked: The name that overrides go by; None: none is taken.
            keep: Settings that no override changes.
        """
        cls = recognizer_class(method)
        names, defaults = constructor_settings(cls), setting_defaults(cls)
        base = full_settings(method, self.size, self.videos.resolution, {})
        recipe = paper_recipe(method, self.data.name, self.size)
        if recipe is not None:
            variant = method_card(method).settings if recipe.method != method else {}
            base |= {**recipe.settings, **variant}
        changes = {**changes}
        own, fixed_by_name = split_name(asked or method)[1], method_card(asked or method).settings
        for key, value in self.overrides.settings.items() if asked is not None else ():
            owner, _, name = key.rpartition(".")
            if owner == asked and name not in names:
                raise unknown(f"setting of {asked}", name, names)
            if owner == asked and name in own:
                raise UsageError(f"--set {key}: {name!r} stands in the method's name; change it there")
            if owner == asked and name in fixed_by_name:
                raise UsageError(f"--set {key}: {name!r} is what makes {asked} a variant; it stays as it is")
            if owner in ("", asked) and name in names and name not in fixed_by_name and name not in keep:
                changes[name] = value
        card = self.videos.card
        for name, value in changes.items():
            if name in base or name not in defaults or not _same(value, defaults[name]):
                base[name] = base[name] if name in base and _same(value, base[name]) else value
        fixed = {
            "num_classes": len(card.classes),
            "resolution": self.videos.resolution,
            "mean": list(card.mean),
            "std": list(card.std),
        }
        return plain({**base, **fixed})

    def _shortest(self, asked: str) -> str:
        """A method's name without the settings that say what holds anyway."""
        plain_name, own = split_name(asked)
        usual = {**setting_defaults(recognizer_class(plain_name)), **self.settings(plain_name)} if own else {}
        return _without(asked, [name for name in own if name in usual and _same(own[name], usual[name])])

    def _stage(self, stage: Stage, overridden: bool) -> Stage:
        changes: dict[str, Any] = {}
        for key, value in self.overrides.stages.items() if overridden else ():
            owner, _, name = key.rpartition(".")
            if name not in STAGE_FIELDS:
                raise unknown("stage setting", name, STAGE_FIELDS)
            if name in STAGE_IDENTITY:
                raise UsageError(f"--set stage.{key}: {', '.join(STAGE_IDENTITY)} say which stage it is and stay so")
            if owner in ("", stage.name):
                changes[name] = value
        epochs = changes.pop("epochs", self.overrides.epochs if overridden else None)
        if epochs is None:
            epochs = max(1, round(stage.epochs * self.protocol.epoch_scale))
        if self.size == "tiny" and stage.views_per_epoch == 1:
            videos = len(self.videos.splits[self.protocol.train_split])
            changes.setdefault("views_per_epoch", max(1, round(TINY_EPOCH / videos)))
        return replace(stage, **changes, epochs=epochs)

    def _weights(
        self, method: str, stage: Stage, own: Mapping[str, TrainSpec], seed: int
    ) -> tuple[tuple[Weights, ...], list[TrainSpec]]:
        weights: list[Weights] = []
        needed: list[TrainSpec] = []
        for init in stage.init:
            kind, _, name = init.source.partition(":")
            if kind == "stage":
                if name not in own:
                    raise UsageError(
                        f"{method}: stage {stage.name!r} starts from {name!r}, which does not come before it"
                    )
                weights.append(Weights(init.into, init.take, key=own[name].key))
            elif kind == "method":
                chain = self.chain(name, seed, init.settings)
                needed += chain
                weights.append(Weights(init.into, init.take, key=chain[-1].key))
            else:
                found = self._pretrained(name, init)
                if isinstance(found, TrainSpec):
                    needed.append(found)
                    weights.append(Weights(init.into, init.take or "backbone", key=found.key))
                elif found is not None:
                    weights.append(Weights(init.into, init.take, path=str(found), backbone=name))
        return tuple(weights), needed

    def _pretrained(self, backbone: str, init: InitFrom) -> TrainSpec | Path | None:
        """The pre-training artifact or weights file of a backbone; None when starting from scratch."""
        how = self.protocol.initialisation
        kind = self.videos.card.pretraining
        if how == "scratch" or (kind is None and how == "auto"):
            return None
        if kind == "stills":
            return self._stills(backbone)
        names = IMAGENET_FILES.get(backbone)
        if names is None:
            if how == "auto":
                return None
            raise UsageError(
                f"there are no pre-trained weights for {backbone!r}; use --set protocol.initialisation=scratch"
            )
        candidates = [self.weights_dir / name for name in names] if self.weights_dir is not None else []
        found = next((path for path in candidates if path.is_file()), None)
        if found is not None:
            return found
        raise UsageError(
            f"{backbone} starts from ImageNet weights ({' or '.join(names)}), which are not in "
            f"{self.weights_dir or 'any --weights-dir'}; nothing is downloaded: put that file there and pass "
            "--weights-dir, or --set protocol.initialisation=scratch"
        )

    def _stills(self, backbone: str) -> TrainSpec:
        card, network = self.videos.card, backbone.partition("@")[0]
        return TrainSpec(
            method=PRETRAINING,
            method_version=card.version,
            settings=plain(
                {
                    "num_classes": CLASSES,
                    "resolution": parameters(card.name, self.size).stills[0],
                    "mean": list(card.mean),
                    "std": list(card.std),
                    "backbone": network,
                }
            ),
            stage=plain(pretraining_stage(network, self.size)),
            weights=(),
            data=replace(self.data, limit=None),
            fingerprint=f"stills:{card.name}:{card.version}:{self.size}",
            seed=0,
            training=training_part(replace(Protocol(), threads=self.protocol.threads)),
            initialisation="scratch",
        )

    @staticmethod
    def _source(
        stage: Stage, weights: Sequence[Weights], own: Mapping[str, TrainSpec], needed: Sequence[TrainSpec]
    ) -> str:
        """Where the very first weights of a stage came from: stills, imagenet or scratch."""
        earlier = [own[i.source.removeprefix("stage:")] for i in stage.init if i.source.startswith("stage:")]
        found = {"stills" if s.method == PRETRAINING else s.initialisation for s in (*needed, *earlier)}
        found |= {"imagenet" for w in weights if w.path is not None}
        return next((kind for kind in ("imagenet", "stills") if kind in found), "scratch")

    def _recognizer(self, method: str, settings: Mapping[str, Any]) -> EfficientRecognizer:
        name = f"{method}{sorted(settings.items())}"
        if name not in self._built:
            self._built[name] = build_recognizer(method, settings)
        return self._built[name]


def _check_modules(method: str, stage: Stage, recognizer: EfficientRecognizer) -> None:
    """Raise UsageError where a stage names modules that the recognizer lacks, or trains nothing."""
    recognizer.set_stage(stage)
    names = [name for name, _ in recognizer.named_parameters()]
    for init in stage.init:
        if not any(below(name, init.into) for name in names):
            raise UsageError(f"{method}: stage {stage.name!r} fills {init.into!r}, which the method does not have")
    if not any(parameter.requires_grad for parameter in recognizer.parameters()):
        raise UsageError(f"{method}: stage {stage.name!r} trains no parameter; trained is {list(stage.trained)}")


def _without(method: str, names: Collection[str]) -> str:
    """A method's name without some of the settings in it."""
    plain_name, own = split_name(method)
    left = {name: value for name, value in own.items() if name not in names}
    return f"{plain_name}[{written(left)}]" if left else plain_name


def _same(one: Any, other: Any) -> bool:
    """Whether two settings are one value; a truth value is no number, a list may stand for a tuple."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(plain(one) == plain(other))


def check_overrides(overrides: Overrides, methods: Sequence[str]) -> None:
    """Raise UsageError for a `--set` that no chosen method knows."""
    known = {m: constructor_settings(recognizer_class(m)) for m in methods}
    for key in overrides.settings:
        owner, _, name = key.rpartition(".")
        if name in DATA_SETTINGS:
            raise UsageError(f"--set {key}: the data set fixes {', '.join(DATA_SETTINGS)}")
        if owner and owner not in known:
            raise unknown("method in --set", owner, known)
        takers = [m for m, names in known.items() if owner in ("", m) and name in names]
        if not takers:
            raise unknown("setting", key, sorted({n for names in known.values() for n in names}))
        if all(name in method_card(m).settings for m in takers):
            raise UsageError(f"--set {key}: the names {', '.join(takers)} fix {name!r}; no chosen method takes another")
