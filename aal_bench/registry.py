"""Readable tables name -> "module:attribute", resolved only when something is used.

Nothing here imports torch: ``aal-bench list`` and ``--help`` read these tables and answer at once.
Third parties add rows through the entry points ``aal_bench.methods``, ``aal_bench.attacks`` and
``aal_bench.tasks``; a single user through ``module:Class`` or ``file.py:Class``. A name of ours
always means ours: no installed package can change what ``pgd`` is.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from aal_bench.errors import UserError, did_you_mean
from aal_bench.paths import data_folder
from aal_bench.plugins import folders, installed, load

__all__ = ["Found", "Row", "find", "fits", "load", "method_row", "protocol", "rows", "serves"]

CLASSIFICATION = ("classification",)
FEWSHOT = ("fewshot",)
DETECTION = ("detection",)
IMAGES = (*CLASSIFICATION, *FEWSHOT)
ANY = ("classification", "detection", "fewshot")


class Row(NamedTuple):
    """One registered thing: where it lives, the task families it serves, what it is."""

    target: str
    families: tuple[str, ...]
    summary: str


ADAPTERS = {
    "classification": Row(
        "aal_bench.adapters.classification:Classification", CLASSIFICATION, "labelled images"
    ),
    "fewshot": Row("aal_bench.adapters.fewshot:FewShot", FEWSHOT, "episodes of new classes"),
    "detection": Row(
        "aal_bench.adapters.detection:ObjectDetection", DETECTION, "objects in images, MMDetection"
    ),
}

METHODS = {
    "standard": Row("aal_bench.methods.standard:Standard", ANY, "the loss on clean images"),
    "fgsm": Row("aal_bench.methods.fgsm:FGSM", ANY, "one step of eps from x (Goodfellow 2015)"),
    "rs-fgsm": Row(
        "aal_bench.methods.rs_fgsm:RSFGSM", ANY, "random start, step 1.25 eps (Wong 2020)"
    ),
    "pgd": Row("aal_bench.methods.pgd:PGD", ANY, "PGD adversarial training (Madry 2018)"),
    "trades": Row(
        "aal_bench.methods.trades:TRADES", CLASSIFICATION, "clean CE + beta KL (Zhang 2019)"
    ),
    "mart": Row(
        "aal_bench.methods.mart:MART",
        CLASSIFICATION,
        "boosted CE + KL weighted by the clean error (Wang 2020)",
    ),
    "fat": Row(
        "aal_bench.methods.fat:FAT", CLASSIFICATION, "PGD stopped early for each image (Zhang 2020)"
    ),
    "ls0.8-pgd": Row(
        "aal_bench.methods.label_smoothing:LS08PGD", CLASSIFICATION, "PGD, true class at 0.8"
    ),
    "ls0.9-pgd": Row(
        "aal_bench.methods.label_smoothing:LS09PGD", CLASSIFICATION, "PGD, true class at 0.9"
    ),
    "awp": Row(
        "aal_bench.methods.awp:AWPPGD", CLASSIFICATION, "PGD, weights perturbed too (Wu 2020)"
    ),
    "trades-awp": Row(
        "aal_bench.methods.awp:TRADESAWP", CLASSIFICATION, "TRADES, weights perturbed too (Wu 2020)"
    ),
    "lbgat": Row(
        "aal_bench.methods.lbgat:LBGAT", CLASSIFICATION, "guided by a clean teacher (Cui 2021)"
    ),
    "las-at": Row(
        "aal_bench.methods.las_at:LASAT", CLASSIFICATION, "a learnt attack strategy (Jia 2022)"
    ),
    "iaat": Row(
        "aal_bench.methods.iaat:IAAT", CLASSIFICATION, "an eps for each image (Balaji 2019)"
    ),
    "atta": Row(
        "aal_bench.methods.atta:ATTA", CLASSIFICATION, "perturbations kept over epochs (Zheng 2020)"
    ),
    "cas": Row(
        "aal_bench.methods.cas:CAS", CLASSIFICATION, "class gates on the last channels (Bai 2021)"
    ),
    "again-pgd": Row(
        "aal_bench.methods.again:AGAINPGD",
        CLASSIFICATION,
        "AGAIN on PGD: mixed class gates, fused features (Yin 2023)",
    ),
    "again-mart": Row(
        "aal_bench.methods.again:AGAINMART", CLASSIFICATION, "AGAIN with the losses of MART"
    ),
    "again-awp": Row(
        "aal_bench.methods.again:AGAINAWP", CLASSIFICATION, "AGAIN on PGD, weights perturbed too"
    ),
    "aal-fgsm": Row(
        "aal_bench.methods.aal:AALFGSM", ANY, "selective attack on the gate's M^a, one step"
    ),
    "aal-pgd": Row("aal_bench.methods.aal:AALPGD", ANY, "selective attack on the gate's M^a, PGD"),
    "aal-trades": Row(
        "aal_bench.methods.aal_logits:AALTRADES", CLASSIFICATION, "TRADES, its attack selective"
    ),
    "aal-mart": Row(
        "aal_bench.methods.aal_logits:AALMART", CLASSIFICATION, "MART, its attack selective"
    ),
    "free": Row(
        "aal_bench.methods.free:Free",
        (*CLASSIFICATION, *DETECTION),
        "weights and perturbation share passes (Shafahi 2019)",
    ),
    "mtd": Row(
        "aal_bench.methods.mtd:MTD", DETECTION, "the stronger of two tasks' attacks (Zhang 2019)"
    ),
    "protonet": Row(
        "aal_bench.methods.protonet:ProtoNet", FEWSHOT, "prototypical networks (Snell 2017)"
    ),
    "relationnet": Row(
        "aal_bench.methods.relationnet:RelationNet", FEWSHOT, "relation networks (Sung 2018)"
    ),
    "metaoptnet": Row(
        "aal_bench.methods.metaoptnet:MetaOptNet", FEWSHOT, "SVM on learnt features (Lee 2019)"
    ),
    "maml": Row("aal_bench.methods.maml:MAML", FEWSHOT, "weights that adapt fast (Finn 2017)"),
    "anil": Row("aal_bench.methods.anil:ANIL", FEWSHOT, "MAML on the classifier (Raghu 2020)"),
    "baseline-finetune": Row(
        "aal_bench.methods.baseline_finetune:BaselineFinetune",
        FEWSHOT,
        "pre-trained, fine-tuned on every episode (Dhillon 2020)",
    ),
    "rfs": Row("aal_bench.methods.rfs:RFS", FEWSHOT, "one good embedding (Tian 2020)"),
    "rfs-distill": Row(
        "aal_bench.methods.rfs_distill:RFSDistill", FEWSHOT, "RFS taught by RFS (Tian 2020)"
    ),
    "ier": Row(
        "aal_bench.methods.ier:IER", FEWSHOT, "invariant and equivariant features (Rizve 2021)"
    ),
    "aal-rfs": Row(
        "aal_bench.methods.aal_fewshot:AALRFS", FEWSHOT, "RFS, selective attack off the mask"
    ),
    "aal-ier": Row(
        "aal_bench.methods.aal_fewshot:AALIER", FEWSHOT, "IER, selective attack off the mask"
    ),
    "aal": Row(
        "aal_bench.methods.aal_fewshot:AALPaper", FEWSHOT, "aal-ier at the paper's rate of 0.1"
    ),
}

HEADS = {
    "prototype": Row(
        "aal_bench.fewshot.heads.prototype:Prototype", FEWSHOT, "distance to class means"
    ),
    "logistic": Row(
        "aal_bench.fewshot.heads.logistic:Logistic", FEWSHOT, "logistic regression on features"
    ),
    "logistic-attacked": Row(
        "aal_bench.fewshot.heads.attacked:LogisticAttacked",
        FEWSHOT,
        "logistic regression, the support set selectively attacked as well (reading F4)",
    ),
    "relation": Row("aal_bench.fewshot.heads.relation:Relation", FEWSHOT, "learnt comparison"),
    "svm": Row("aal_bench.fewshot.heads.svm:SVM", FEWSHOT, "differentiable multi-class SVM"),
    "maml": Row("aal_bench.fewshot.heads.maml:MAMLHead", FEWSHOT, "all weights adapt"),
    "anil": Row("aal_bench.fewshot.heads.anil:ANILHead", FEWSHOT, "the classifier adapts"),
    "finetune": Row("aal_bench.fewshot.heads.finetune:FineTune", FEWSHOT, "all weights fine-tuned"),
}

UPDATES = {
    "plain": Row("aal_bench.methods.updates:Plain", ANY, "one optimiser step on the loss"),
    "awp": Row("aal_bench.methods.updates:AWP", ANY, "adversarial weight perturbation (Wu 2020)"),
}

ATTACKS = {
    "clean": Row("aal_bench.attacks.stages:Clean", ANY, "no attack, one forward"),
    "fgsm": Row(
        "aal_bench.attacks.stages:FGSM", ANY, "one step of eps: torchattacks; on detectors linf_pgd"
    ),
    "pgd-N": Row(
        "aal_bench.attacks.stages:PGD",
        ANY,
        "N steps of the task's size, uniform start: torchattacks; on detectors linf_pgd",
    ),
    **{
        f"{attack}{part}{budget}": Row(
            "aal_bench.attacks.detector:DetectorStage",
            DETECTION,
            f"the same on {told}{' at eps N/255' if budget else ''}",
        )
        for attack in ("fgsm", "pgd-N")
        for part, told in {
            "": "a detector's loss",
            "-cls": "a detector's loss of classes",
            "-loc": "a detector's loss of boxes",
        }.items()
        for budget in ("", "-eps-N")
        if part or budget
    },
    "cw-inf-N": Row("aal_bench.attacks.stages:CWInf", IMAGES, "PGD on the margin loss, N steps"),
    "apgd-ce": Row("aal_bench.attacks.autoattack:APGDCE", IMAGES, "AutoAttack 1/4: APGD on CE"),
    "apgd-t": Row(
        "aal_bench.attacks.autoattack:APGDT", IMAGES, "AutoAttack 2/4: APGD on DLR, targets"
    ),
    "fab-t": Row("aal_bench.attacks.autoattack:FABT", IMAGES, "AutoAttack 3/4: FAB, targets"),
    "square": Row("aal_bench.attacks.autoattack:Square", IMAGES, "AutoAttack 4/4: 5,000 queries"),
    **{
        f"bf16-{exact}": Row(
            f"aal_bench.attacks.search:{name}",
            CLASSIFICATION,
            f"{exact}, searched in bfloat16; every success confirmed in float32",
        )
        for exact, name in {
            "apgd-ce": "SearchedAPGDCE",
            "apgd-t": "SearchedAPGDT",
            "fab-t": "SearchedFABT",
            "square": "SearchedSquare",
        }.items()
    },
    "adaptive": Row(
        "aal_bench.attacks.adaptive.stage:WorstCase",
        CLASSIFICATION,
        "after AutoAttack, on gates and heads that a network declares: no part of a protocol",
    ),
}

MODELS = {
    "resnet18": Row(
        "aal_bench.models.robustbench:resnet18", CLASSIFICATION, "RobustBench ResNet-18, 32 px"
    ),
    "preactresnet18": Row(
        "aal_bench.models.robustbench:preactresnet18",
        CLASSIFICATION,
        "RobustBench PreActResNet-18, 32 px",
    ),
    "wrn-D-W": Row(
        "aal_bench.models.robustbench:wide_resnet",
        CLASSIFICATION,
        "RobustBench WideResNet, depth D, width W (wrn-34-10), 32 px",
    ),
    "resnet50": Row(
        "aal_bench.models.torchvision:resnet50", CLASSIFICATION, "torchvision ResNet-50, 224 px"
    ),
    "cnn4": Row("aal_bench.models.learn2learn:cnn4", IMAGES, "learn2learn CNN4, 64 channels"),
    "cnn4-W": Row(
        "aal_bench.models.learn2learn:cnn4",
        IMAGES,
        "learn2learn CNN4, W channels (cnn4-32), 16 px and more",
    ),
    "resnet12": Row(
        "aal_bench.models.learn2learn:resnet12",
        IMAGES,
        "learn2learn ResNet-12, 64-160-320-640, 16 px and more",
    ),
    "wrn28": Row("aal_bench.models.learn2learn:wrn28", IMAGES, "learn2learn WRN-28-10, any size"),
    "wrn28-W": Row(
        "aal_bench.models.learn2learn:wrn28",
        IMAGES,
        "learn2learn WRN-28, width W (wrn28-1), any size",
    ),
}

MODELS |= {
    "ssd512-resnet34": Row(
        "aal_bench.detection.build:detector",
        DETECTION,
        "MMDetection SSD-512, ResNet-34, three stages (variant A)",
    ),
    "ssd512-resnet34-b": Row(
        "aal_bench.detection.build:detector",
        DETECTION,
        "MMDetection SSD-512, ResNet-34, one map at stride 8 (variant B)",
    ),
}

TABLES = {
    "method": METHODS,
    "update": UPDATES,
    "attack": ATTACKS,
    "model": MODELS,
    "adapter": ADAPTERS,
    "head": HEADS,
}
PROTOCOLS = {
    "full": (
        ("clean", "fgsm", "pgd-10", "apgd-ce", "apgd-t", "fab-t", "square"),
        "clean, FGSM, PGD-10, AutoAttack standard: the default, rankable",
    ),
    "paper": (("clean", "fgsm", "pgd-10"), "the AAL paper's columns; never ranked"),
    "again": (
        (
            *("clean", "pgd-10", "pgd-20", "pgd-50", "pgd-100", "cw-inf-30"),
            *("apgd-ce", "apgd-t", "fab-t", "square"),
        ),
        "the AGAIN poster's columns, rankable",
    ),
    "standard": (
        ("clean", "apgd-ce", "apgd-t", "fab-t", "square"),
        "clean and AutoAttack standard, as RobustBench: rankable",
    ),
    "fast": (
        ("clean", "pgd-20", "apgd-ce", "apgd-t"),
        "development: AutoAttack's two gradient attacks; never ranked",
    ),
    "searched": (
        ("clean", "bf16-apgd-ce", "bf16-apgd-t", "bf16-fab-t", "bf16-square"),
        "AutoAttack searched in bfloat16, its successes confirmed in float32; never ranked:"
        " an upper bound that AutoAttack confirms",
    ),
    "episodes": (("clean",), "few-shot: accuracy on clean queries, as the papers' tables"),
    "robust-episodes": (
        ("clean", "pgd-20", "apgd-ce", "apgd-t", "fab-t", "square"),
        "few-shot: clean, PGD-20 and AutoAttack on the queries",
    ),
    "detection": (
        (
            "clean",
            *(
                f"{attack}{part}{budget}"
                for budget in ("", "-eps-2")
                for part in ("", "-cls", "-loc")
                for attack in ("fgsm", "pgd-10", "pgd-20")
            ),
        ),
        "detection: mAP, clean and under attacks on the whole loss and its parts, two budgets",
    ),
    "detection-fast": (
        ("clean", "fgsm", "pgd-10"),
        "detection: clean, FGSM and PGD-10 on the whole loss",
    ),
    "detection-clean": (("clean",), "detection: clean mAP, as the AAL paper's table"),
    "smoke": (("clean", "fgsm", "pgd-2"), "seconds; proves that the parts run; never ranked"),
}
AUTOATTACK = ("apgd-ce", "apgd-t", "fab-t", "square")
SEARCHED = ("bf16-apgd-ce", "bf16-apgd-t", "bf16-fab-t", "bf16-square")
"""AutoAttack's four, searched in reduced precision: a suite of its own."""
ADAPTIVE = "adaptive"
"""The stage that follows a protocol with AutoAttack where a network declares a gate or heads."""
EPISODIC = ("episodes", "robust-episodes")
"""Protocols of few-shot tasks, one of which has no attack."""
DETECTING = ("detection", "detection-fast", "detection-clean")
"""Protocols of detection tasks."""
_NUMBER = r"[1-9]\d{0,4}"
_HOLE = re.compile(r"-[NDW](?=-|$)")


class Found(NamedTuple):
    """A resolved name: its row and the numbers in the name (``wrn-34-10`` -> (34, 10))."""

    name: str
    row: Row
    numbers: tuple[int, ...]


def find(kind: str, name: str) -> Found:
    """Look `name` up; ``-N`` or ``-D-W`` in a row's name stands for numbers.

    Raises:
        UserError: unknown name; the nearest ones are named.
    """
    found = _match(TABLES[kind], name) or _match(entry_points(kind), name)
    if found is not None:
        return found
    hint = did_you_mean(name, list(rows(kind)))
    if name.endswith(".py"):
        hint = f" Say which class of the file: {name}:Name."
    where = "methods" if kind == "update" else f"{kind}s"
    raise UserError(f"unknown {kind} '{name}'.{hint} (aal-bench list {where})")


def _match(table: dict[str, Row], name: str) -> Found | None:
    if name in table and not _HOLE.search(name):
        return Found(name, table[name], ())
    for pattern, row in table.items():
        shape = _HOLE.sub(lambda _: rf"-({_NUMBER})", pattern)
        match = re.fullmatch(shape, name)
        if match and match.groups():
            return Found(name, row, tuple(int(number) for number in match.groups()))
    return None


def rows(kind: str) -> dict[str, Row]:
    """Every row of a table, ours before those of installed packages."""
    ours = TABLES[kind]
    return ours | {name: row for name, row in entry_points(kind).items() if name not in ours}


def follows(stage: str) -> tuple[str, ...]:
    """The attacks of its suite before `stage`: a sequential one sees only what these left."""
    for suite in (AUTOATTACK, SEARCHED):
        if stage in suite:
            return suite[: suite.index(stage)]
    return ()


def method_row(name: str) -> Row:
    """The row of a method's name, or a row made of ``module:Class`` / ``file.py:Class``."""
    if ":" in name:
        return Row(name, ANY, "a method of your own")
    return find("method", name).row


def serves(row: Row, name: str, family: str) -> None:
    """Refuse a method on a family it cannot serve, naming those that can."""
    if family not in row.families:
        fitting = ", ".join(key for key, other in METHODS.items() if family in other.families)
        raise UserError(
            f"method '{name}' serves {', '.join(row.families)}, not {family}. These can: {fitting}"
        )


def fits(row: Row, model: str, family: str) -> None:
    """Refuse a model on a family it cannot serve, naming those that can."""
    if family not in row.families:
        fitting = ", ".join(key for key, other in MODELS.items() if family in other.families)
        raise UserError(
            f"model '{model}' serves {', '.join(row.families)}, not {family}. These can: {fitting}"
        )


def with_recipe() -> list[str]:
    """The methods of ours that have an official recipe. Imports them."""
    return [name for name, row in METHODS.items() if load(row.target).recipe is not None]


def entry_points(kind: str) -> dict[str, Row]:
    """Rows that installed packages offer under ``aal_bench.<kind>s``."""
    return {
        point.name: Row(point.value, ANY, f"from {point.module.split('.')[0]}")
        for point in installed(f"aal_bench.{kind}s")
    }


def task_file(name: str) -> Path:
    """Find ``tasks/<name>.toml``, or the file itself when `name` is a path to one.

    Raises:
        UserError: unknown task; the nearest ones are named.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"{name}: no such task file")
        return path
    ours = _toml_files(data_folder("tasks"))
    known = ours if name in ours else task_files()
    if name not in known:
        raise UserError(
            f"unknown task '{name}'.{did_you_mean(name, list(known))} (aal-bench list tasks)"
        )
    return known[name]


def task_files() -> dict[str, Path]:
    """Every task by name: ours, and those that installed packages offer (a folder of TOML).

    Raises:
        UserError: a package offers a folder that it does not have.
    """
    files = _toml_files(data_folder("tasks"))
    for point in installed("aal_bench.tasks"):
        for folder in folders(point):
            files = _toml_files(folder) | files
    return files


def _toml_files(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def protocol(name: str) -> tuple[str, ...]:
    """The stages of a named protocol, or of a list such as ``clean,pgd-100``, in order.

    Raises:
        UserError: unknown protocol or attack, or a list that does not begin with ``clean``.
    """
    if "," in name:
        return _listed(name)
    if name == "clean":
        raise UserError("protocol clean: without an attack only episodes and detection-clean")
    if name not in PROTOCOLS:
        if _match(rows("attack"), name) is not None:
            raise UserError(f"'{name}' is one attack; as a protocol, write clean,{name}")
        raise UserError(
            f"unknown protocol '{name}'.{did_you_mean(name, list(PROTOCOLS))}"
            f" Known: {', '.join(PROTOCOLS)}; or a list: clean,pgd-100"
        )
    return PROTOCOLS[name][0]


def _listed(text: str) -> tuple[str, ...]:
    stages = tuple(text.split(","))
    for stage in stages:
        find("attack", stage)
    if ADAPTIVE in stages:
        raise UserError(
            f"--protocol {text}: {ADAPTIVE} is no part of a protocol; it follows AutoAttack's four"
            " by itself where a network declares a gate or heads"
        )
    if stages[0] != "clean" or len(set(stages)) < max(len(stages), 2):
        raise UserError(
            f"--protocol {text}: a list begins with clean, and names each of its attacks once"
        )
    return stages
