"""What somebody may have meant by a name that there is not."""

import difflib
from collections.abc import Collection, Iterable

OTHER_NAMES = {
    "augment.crop_scale": ("global_crops_scale", "scale"),
    "augment.flip": ("hflip",),
    "augment.jitter": ("color_jitter",),
    "augment.size": ("crop_size", "image_size", "img_size", "input_size"),
    "augment.views": ("num_crops", "num_large_crops", "num_views", "views"),
    "data.channels": ("image_mode", "num_channels"),
    "data.image_column": ("image_column_name", "image_key"),
    "data.label_column": ("label_column_name", "label_key"),
    "data.name": ("dataset",),
    "data.path": ("data", "data_dir", "data_path", "root", "train_dir", "train_path"),
    "data.workers": ("num_workers", "workers"),
    "equimod.weight": ("equimod",),
    "hard_views.views": ("hardviews", "hvp"),
    "model.name": ("arch", "backbone", "model"),
    "model.weights": ("checkpoint", "initial_checkpoint", "load_from", "pretrained"),
    "optimizer.clip": ("clip_grad", "grad_clip", "gradient_clip_val"),
    "optimizer.final_weight_decay": ("weight_decay_end",),
    "optimizer.lr": ("learning_rate",),
    "optimizer.name": ("opt", "optim", "optimizer"),
    "optimizer.warmup": ("warmup_epochs", "warmup_steps"),
    "optimizer.weight_decay": ("wd",),
    "out": ("checkpoint_dir", "experiment", "output", "output_dir", "save_dir"),
    "resume": ("auto_resume", "resume_from_checkpoint", "resume_interrupted"),
    "train.accumulate": ("accumulate_grad_batches", "grad_accum_steps"),
    "train.batch_size": ("batch_size", "batch_size_per_gpu", "bs"),
    "train.checkpoint_every": ("save_steps", "saveckp_freq"),
    "train.devices": ("gpus", "nproc_per_node", "num_gpus"),
    "train.epochs": ("epochs", "max_epochs", "max_steps", "num_steps", "steps", "total_steps"),
    "train.log_every": ("log_every_n_steps", "log_interval", "logging_steps"),
    "train.precision": ("amp", "use_fp16"),
    "train.sync_batchnorm": ("sync_bn",),
    # Without a group: settings of several commands or methods, which have them in their own.
    "accelerator": ("device",),
    "local_scale": ("local_crops_scale",),
    "local_views": ("local_crops_number",),
    "momentum": ("moco_m", "momentum_teacher"),
    "predictor": ("pred_dim", "pred_hidden_dim"),
    "projector": ("moco_dim", "proj_hidden_dim", "proj_output_dim"),
    "prototypes": ("num_prototypes", "out_dim"),
    "queue": ("moco_k", "queue_size"),
    "teacher_temperature": ("teacher_temp",),
    "temperature": ("moco_t", "temp"),
    "warmup_teacher_temperature": ("warmup_teacher_temp",),
}
"""What lightly-train, solo-learn, timm, Lightning and the methods' authors call our settings."""

OTHER_CHOICES = {"cuda": "gpu", "gpu": "cuda"}
"""What others, and some settings of ours, call the same choice."""

_LEAST_FUZZY = 5  # letters: most words are spelled much like a shorter one (steps, temp)

_OURS = {other: ours for ours, others in OTHER_NAMES.items() for other in others}


def did_you_mean(names: Iterable[str]) -> str:
    """A question to append to an error; empty without names."""
    *others, last = ["", *names]
    listed = ", ".join(others[1:])
    return f"; did you mean {listed}{' or ' if listed else ''}{last}?" if last else ""


def similar(word: str, known: Iterable[str]) -> list[str]:
    """The name that is spelled most like a word, whatever its case and dashes; none if none is."""
    by_plain = {_plain(name): name for name in known}
    return [by_plain[plain] for plain in difflib.get_close_matches(_plain(word), by_plain, n=1)]


def choices_like(word: str, choices: Collection[str]) -> list[str]:
    """The choice that somebody may have meant by a word; none if none is like it."""
    other = OTHER_CHOICES.get(word.lower(), "")
    return [other] if other in choices else similar(word, choices)


def settings_like(name: str, known: Collection[str], method: str | None = None) -> list[str]:
    """The settings that somebody may have meant by a name, at most three.

    Args:
        name: What was written: ``lr``, ``train.epoch``, ``--batch-size``.
        known: Dotted names of all settings.
        method: The method that is trained: its own settings go before those of the others.
    """
    group, _, last = _plain(name).rpartition(".")
    members = [each.removeprefix(f"{group}.") for each in known if each.startswith(f"{group}.")]
    of, _, ours = _OURS.get(last, "").rpartition(".")
    foreign = of in ("", group) and ours in members  # another program's name, and no misspelled one
    close = [ours] if foreign else similar(last, members)
    found = [f"{group}.{each}" for each in close] or _called(last, known)
    if not found:
        others = (each for each in _OURS if len(each) >= _LEAST_FUZZY)
        names = {*others, *(each.rpartition(".")[2] for each in known)}
        for each in similar(last, sorted(names)):
            found = _called(each, known)
    return [each for each in found if each.startswith(f"{method}.")] or found[:3]


def _called(name: str, known: Collection[str]) -> list[str]:
    """The setting of a name, ours or another program's, or those of this name in their groups."""
    if name in known:
        return [name]
    for meant in (_OURS.get(name, name), name):
        if found := sorted(each for each in known if meant in (each, each.rpartition(".")[2])):
            return found
    return []


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_").lower()
