"""What is measured after training, of runs and of what comes from elsewhere."""

import json
import shutil

import numpy as np
import pytest
import torch
import torchvision
import yaml
from PIL import Image

from mast_ext.models import BackboneSpec, ImageFormat, save_backbone

FEW = ["--finetune.epochs=2", "--finetune.batch_size=8"]


@pytest.fixture
def measured(call, tmp_path):
    """Evaluates: the standard output, and what is written as JSON."""

    def run(*arguments):
        status, out, err = call("evaluate", *arguments, "--json=found.json")
        assert status == 0, err
        return out, json.loads((tmp_path / "found.json").read_text())

    return run


@pytest.mark.parametrize(
    "what", ["", "checkpoints/last.ckpt", "backbone.safetensors", "backbone-timm"]
)
def test_numbers_are_those_of_the_end_of_training(exported, measured, shapes, what):
    """Of the run, of its files and of its export, which say themselves what images they take."""
    own = [] if what in ("", "checkpoints/last.ckpt") else [*shapes, "--evaluation.neighbors=[5]"]
    _, found = measured(exported / what, *own)
    expected = json.loads((exported / "report" / "results.json").read_text())["rows"]
    backbone, embedding, untrained, chance = expected
    for row in (backbone, untrained):
        mine = next(
            each
            for each in found["rows"]
            if (each["model"] == "untrained") == (row["model"] == "untrained")
            and each["part"] == "backbone"
        )
        assert {**mine, "model": row["model"]} == row
    parts = [row["part"] for row in found["rows"]]
    assert ("embedding" in parts) == (not own)
    assert found["rows"][-1]["accuracy"]["linear probe"] == chance["accuracy"]["linear probe"]
    assert found["settings"]["augment"]["mean"] == [0.5, 0.4, 0.3]


def test_weights_of_torchvision(measured, call, shapes, tmp_path):
    """With --model.name; the images are those that timm has the model for, unless it is said."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18()
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    options = [*shapes, "--augment.size=32", "--reference=false", "--evaluation.neighbors=[5]"]
    _, found = measured("resnet18.pth", "--model.name=resnet18", *options)
    assert [row["model"] for row in found["rows"]] == ["resnet18.pth", "chance"]
    assert found["rows"][0]["dimensions"] == 512
    status, out, _ = call(
        "evaluate", "resnet18.pth", "--model.name=resnet18", *shapes, "--print_config"
    )
    assert status == 0 and yaml.safe_load(out)["augment"]["size"] == 224


def test_fine_tuning(exported, measured):
    """Of the network and of the untrained one; the same again."""
    options = ["--measure=finetune", "--finetune.labels=0.01,0.5,1", *FEW]
    out, found = measured(exported, *options)
    assert "not fine-tuned: 1% of the 24 training images are 0, fewer than the 5 classes" in out
    assert "fine-tuned 50%: 12 of 24 training images, 2 steps" in out
    assert "fine-tuned 100%: 24 of 24 training images, 6 steps" in out
    rows = [(row["model"], row["part"]) for row in found["rows"]]
    assert rows == [("simclr", "backbone"), ("untrained", "backbone"), ("chance", "")]
    for row in found["rows"]:
        assert list(row["accuracy"]) == ["fine-tuned 50%", "fine-tuned 100%"]
        assert list(row["mean_class_accuracy"]) == list(row["accuracy"])
        assert "rankme" not in row
    assert measured(exported, *options)[1] == found


def test_everything_at_once_is_one_row_for_each_representation(exported, measured):
    options = ["--measure=probes,augmentations,finetune", "--finetune.labels=1", *FEW]
    out, found = measured(exported, *options)
    rows = {(row["model"], row["part"]): row for row in found["rows"]}
    assert len(rows) == len(found["rows"]) == 4
    backbone = rows["simclr", "backbone"]
    assert list(backbone["accuracy"]) == ["linear probe", "k-NN 5", "fine-tuned 100%"]
    assert {"x", "brightness", "hue", "grayscale"} <= backbone["augmentation_r2"].keys()
    assert rows["simclr", "embedding"]["augmentation_r2"].keys() == (
        backbone["augmentation_r2"].keys()
    )
    assert "R² (%)" in out


def folder_of(root, **counts):
    """Folders of so many images each; a name has two underscores for a slash."""
    generator = np.random.default_rng(0)
    for name, count in counts.items():
        place = root / name.replace("__", "/")
        place.mkdir(parents=True)
        for i in range(count):
            pixels = generator.integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(place / f"{i}.png")
    return ["--data.name=folder", f"--data.path={root}"]


def test_other_images(exported, measured, tmp_path):
    """All of them, though the run was on few; of unbalanced classes their mean accuracy, too."""
    data = folder_of(tmp_path / "other", train__cat=30, train__dog=30, test__cat=12, test__dog=4)
    out, found = measured(exported, *data)
    assert found["settings"]["data"]["max_images"] is None
    assert "mean accuracy of classes (%), class" in out
    (chance,) = (row for row in found["rows"] if row["model"] == "chance")
    assert chance["accuracy"]["linear probe"]["class"] in (12 / 16, 4 / 16)
    assert chance["mean_class_accuracy"]["linear probe"]["class"] == 0.5
    out, found = measured(exported, *data, "--data.max_images=20")
    assert found["settings"]["data"]["max_images"] == 20


def test_how_images_are_stored_is_not_inherited_by_others(exported, measured, tmp_path):
    """Of a run on arrays of 16 bits, whose columns folders do not have."""
    run = tmp_path / "run"
    shutil.copytree(exported, run)
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["data"] |= {"name": "numpy", "path": "arrays.npz", "channels": 3, "bits": 16}
    settings["data"] |= {"image_column": "x", "label_column": "y"}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    data = folder_of(tmp_path / "other", train__cat=9, train__dog=9, test__cat=4, test__dog=4)
    found = measured(run, *data)[1]["settings"]["data"]
    assert [found[name] for name in ("image_column", "label_column", "bits")] == [None] * 3
    assert found["channels"] == 3


def gray_backbone(path):
    """A file of a network that takes gray images of 32 pixels."""
    spec = BackboneSpec("resnet18", True, {"in_chans": 1})
    save_backbone(spec.create(), spec, path, ImageFormat(32, (0.5,), (0.3,)))
    return path


def test_augmentations_of_gray_images(measured, tmp_path):
    """Which have no colors to change."""
    path = gray_backbone(tmp_path / "gray.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (30, 32, 32), np.uint8)
    np.savez(tmp_path / "gray.npz", train_images=pixels[:20], test_images=pixels[20:])
    data = ["--data.name=numpy", "--data.path=gray.npz", "--reference=false"]
    out, found = measured(path, *data, "--measure=augmentations")
    note, few = found["notes"]
    assert few.startswith("R² is not to be relied on") and "only 20 training images" in few
    assert few in " ".join(out.split())
    assert note.startswith("not applied, since images of 1 channel have no colors: augment.sat")
    assert "not applied" in out and found["settings"]["augment"]["hue"] == 0
    (row,) = found["rows"]
    assert "brightness" in row["augmentation_r2"] and "hue" not in row["augmentation_r2"]


def test_a_network_of_gray_images_is_measured_on_shapes(measured, shapes, tmp_path):
    path = gray_backbone(tmp_path / "gray.safetensors")
    options = [*shapes, "--reference=false", "--evaluation.neighbors=[5]"]
    _, found = measured(path, *options)
    assert found["rows"][0]["accuracy"]["k-NN 5"]
    assert not any("not applied" in note for note in found["notes"])  # probes change no colors


def test_more_neighbors_than_images_are_left_out(exported, measured):
    out, found = measured(exported, "--evaluation.neighbors", "25,24,3", "--reference=false")
    assert "k-NN 25 left out: there are only 24 training images" in out
    assert found["notes"][-1] == "k-NN 25 left out: there are only 24 training images"
    assert list(found["rows"][0]["accuracy"]) == ["linear probe", "k-NN 24", "k-NN 3"]
    out, found = measured(exported, "--evaluation.neighbors=1000", "--reference=false")
    assert list(found["rows"][0]["accuracy"]) == ["linear probe"]


def test_balanced_classes_have_one_table(exported, measured, tmp_path):
    data = folder_of(tmp_path / "other", train__cat=9, train__dog=9, test__cat=4, test__dog=4)
    out, _ = measured(exported, *data)
    assert "accuracy (%), class" in out and "mean accuracy of classes" not in out


def test_augmentations_need_no_labels(exported, measured, call, tmp_path):
    data = folder_of(tmp_path / "photos", train=20, test=10)
    out, found = measured(exported, "--measure=augmentations", *data)
    assert [row["model"] for row in found["rows"]] == ["simclr", "simclr", "untrained"]
    assert "brightness" in out
    status, _, err = call("evaluate", exported, "--measure=probes,augmentations", *data)
    assert status == 1
    reason = "the images have no labels (--measure augmentations needs no labels)"
    assert err == f"mast-ext: nothing to evaluate by: {reason}\n"


def test_classes_that_test_has_not(exported, measured, tmp_path):
    data = folder_of(tmp_path / "other", train__cat=9, train__dog=9, train__emu=9, test__cat=4)
    out, _ = measured(exported, "--measure=finetune", "--finetune.labels=1", *FEW, *data)
    assert "test has no images of 2 of the 3 classes in train" in out and "dog, emu" in out


# arguments after PATH (RUN and EXPORT are those of the fixture), part of the sentence
WRONG = [
    (["RUN", "--measure=probe"], "augmentations, got 'probe'; did you mean probes?"),
    (["RUN", "--measure="], "measure must be one or more of probes, finetune"),
    (["RUN", "--finetune.labels=10"], "labels must be one or more shares in (0, 1], as 0.01,0.1,1"),
    (["RUN", "--finetune.labels=10%"], "shares in (0, 1], as 0.01,0.1,1, got '10%'"),
    (["RUN", "--epochs=3"], "there is no option --epochs; did you mean --finetune.epochs?"),
    (["RUN", "--finetune.labels=[]"], "finetune.labels must be one or more shares in (0, 1]"),
    (["RUN", "--finetune.epochs=3"], "--finetune.epochs changes nothing: --measure does not name"),
    (["RUN", "--measure=finetune", "--evaluation.neighbors=3"], "changes nothing: --measure does"),
    (["RUN", "--model.small_images=true"], "it is for files of weights alone, of the network"),
    (["RUN", "--finetune.epochs=0"], "finetune.epochs must be positive, got 0"),
    (["RUN", "--finetune.lr=-1"], "finetune.lr must be positive, got -1"),
    (["RUN", "--finetune.batch_size=1"], "finetune.batch_size must be at least 2, got 1"),
    (
        ["RUN", "--measure=finetune", "--finetune.labels=0.01"],
        "not fine-tuned: 1% of the 24 training images are 0, fewer than the 5 classes of shape",
    ),
    (["RUN", "--finetune.label=1"], "did you mean --finetune.labels?"),
    (["RUN", "--data.path=photos"], "data.path is photos, but data.name is shapes, which are made"),
    (["RUN", "--model.name=resnet18"], "--model.name says of which network a file of weights is"),
    (["EXPORT", "--model.name=resnet18"], "is a folder, which says so itself: leave it out"),
    (["foreign.safetensors"], "--model.name says of which"),
    (["weights.pth"], "--model.name says of which"),
    (["weights.pth", "--model.name=resnet50"], "do not fit the backbone: "),
    (["nothere.pth", "--model.name=resnet18"], "there is no file of weights at nothere.pth"),
    (["weights.pth", "--model.name=resnt18"], "did you mean resnet18"),
    (["gray.pth", "--model.name=resnet18"], "conv1.weight must have shape [64, 3, 7, 7], got [64,"),
    (
        ["gray.pth", "--model.name=resnet18", "--model.timm_args={in_chans: 1}"],
        "gray.pth takes images of 1 channel, and augment.mean and augment.std have 3 numbers",
    ),
    (["config"], "config/config.json does not describe a backbone of timm"),
    (["empty"], "empty is not a run directory"),
    (
        ["vit.pth", "--model.name=vit_tiny_patch16_224", "--model.timm_args={depth: 1}"],
        "augment.size: vit_tiny_patch16_224 does not take images of 16 pixels",
    ),
    (
        ["one"],
        "nothing to evaluate by: all training images are of one class (--measure augmentations"
        " needs no labels)",
    ),
]


@pytest.fixture(scope="module")
def odd_files(tmp_path_factory):
    import timm
    from safetensors.torch import save_file

    root = tmp_path_factory.mktemp("odd")
    (root / "empty").mkdir()
    (root / "config").mkdir()
    (root / "config" / "config.json").write_text('{"model_type": "vit"}')
    for name, model, arguments in (
        ("weights", "resnet18", {}),
        ("gray", "resnet18", {"in_chans": 1}),
        ("vit", "vit_tiny_patch16_224", {"depth": 1}),
    ):
        torch.save(timm.create_model(model, **arguments).state_dict(), root / f"{name}.pth")
    save_file({"a": torch.ones(2)}, root / "foreign.safetensors")
    folder_of(root / "photos", train__cat=9, test__cat=4)
    return root


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_what_is_wrong_is_said_in_a_sentence(
    exported, odd_files, call, monkeypatch, shapes, arguments, message
):
    path, *options = arguments
    monkeypatch.chdir(odd_files)
    if path == "one":
        path, data = "RUN", ["--data.name=folder", "--data.path=photos"]
    else:
        data = [] if path in ("RUN", "EXPORT") else [*shapes, "--augment.size=16"]
    path = {"RUN": exported, "EXPORT": exported / "backbone-timm"}.get(path, path)
    status, out, err = call("evaluate", path, *data, *options)
    assert status in (1, 2) and out == "" and err.count("\n") == 1, (out, err)
    assert message in err
