"""Images of Hugging Face's `datasets`."""

import io
import os
import sys

import numpy as np
import pytest
from PIL import Image

from mast_ext.data import BadImageError, HuggingFaceSource, SplitError, open_source


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """The package, which keeps what it converts where the tests do."""
    package = pytest.importorskip("datasets", reason="needs datasets")
    folder = str(tmp_path_factory.mktemp("cache"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package.config, "HF_DATASETS_CACHE", folder)
        yield package


def pixels(seed, side=8, dtype=np.uint8, channels=3):
    shape = (side, side, channels) if channels == 3 else (side, side)
    top = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, top + 1, shape, dtype=dtype)


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def table(datasets):
    """Makes a table of images with the columns that are given beside them."""

    def table(arrays, features=None, column="image", **others):
        cells = [{"bytes": png(array), "path": None} for array in arrays]
        kinds = {column: datasets.Image(), **(features or {})}
        for name, values in others.items():
            kind = "string" if isinstance(values[0], str) else "int64"
            kinds.setdefault(name, datasets.Value(kind))
        values = {column: cells, **others}
        return datasets.Dataset.from_dict(values, features=datasets.Features(kinds))

    return table


def check(source, arrays):
    assert len(source) == len(arrays)
    for i, array in enumerate(arrays):
        expected = array if array.ndim == 3 else array[..., None]
        assert np.array_equal(source.image(i).permute(1, 2, 0).numpy(), expected)


@pytest.fixture(params=["save_to_disk", "parquet", "parquet in folders", "parquet by a pattern"])
def write(request, datasets, tmp_path):
    """Writes the tables of splits, and gives their path."""

    def write(**splits):
        if request.param == "save_to_disk":
            datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
            return tmp_path / "saved"
        for name, split in splits.items():
            half = max(1, len(split) // 2)
            for part, rows in enumerate((range(half), range(half, len(split)))):
                file = tmp_path / f"{name}-0000{part}-of-00002.parquet"
                if request.param == "parquet in folders":
                    file = tmp_path / "data" / name / f"{part}.parquet"
                    file.parent.mkdir(parents=True, exist_ok=True)
                split.select(rows).to_parquet(str(file))
        return tmp_path / "*.parquet" if request.param.endswith("pattern") else tmp_path

    return write


@pytest.mark.parametrize("side", [8, 70], ids=["in memory", "decoded when used"])
def test_splits_labels_and_classes(datasets, table, write, side):
    kinds = {"label": datasets.ClassLabel(names=["cat", "dog"])}
    arrays = {split: [pixels(i, side) for i in range(4)] for split in ("train", "test")}
    path = write(
        train=table(arrays["train"], kinds, label=[0, 1, 1, 0]),
        test=table(arrays["test"], kinds, label=[1, 1, 1, 1]),
    )
    for split, labels in (("train", [0, 1, 1, 0]), ("test", [1, 1, 1, 1])):
        source = open_source("huggingface", split, path=path)
        check(source, arrays[split])
        assert source.labels["class"].tolist() == labels
        assert source.classes == {"class": ["cat", "dog"]}


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_without_splits_a_tenth_is_for_tests(table, tmp_path, kind):
    made = table([pixels(i) for i in range(20)], label=list(range(20)))
    path = tmp_path / ("saved" if kind == "folder" else "images.parquet")
    (made.save_to_disk if kind == "folder" else made.to_parquet)(str(path))
    train, test = (HuggingFaceSource(path, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (18, 2)
    for source in (train, test):
        check(source, [pixels(i) for i in source.labels["class"]])


def test_gray_of_16_bits(table, write):
    arrays = [pixels(i, 70, np.uint16, 1) for i in range(2)]
    source = HuggingFaceSource(write(train=table(arrays)), "train")
    assert (source.channels, source.bits, source.labels) == (1, 16, {})
    check(source, arrays)


def test_all_columns_of_classes_are_factors_unless_one_is_named(datasets, table, tmp_path):
    kinds = {name: datasets.ClassLabel(names=["a", "b"]) for name in ("fine", "coarse")}
    made = table([pixels(0), pixels(1)], kinds, fine=[0, 1], coarse=[1, 1], who=["x", "y"])
    datasets.DatasetDict(train=made).save_to_disk(str(tmp_path / "saved"))
    source = HuggingFaceSource(tmp_path / "saved", "train")
    assert list(source.labels) == ["fine", "coarse"]
    source = HuggingFaceSource(tmp_path / "saved", "train", label_column="who")
    assert source.labels["class"].tolist() == [0, 1] and source.classes == {"class": ["x", "y"]}


def test_names_as_labels_are_those_of_the_training_split(datasets, table, tmp_path):
    path = str(tmp_path / "saved")
    train = table([pixels(0), pixels(1)], label=["b", "a"])
    for names, error in ((["b"], None), (["emu"], SplitError)):
        test = table([pixels(2)], label=names)
        datasets.DatasetDict(train=train, test=test).save_to_disk(path)
        if error is None:
            assert HuggingFaceSource(path, "test").labels["class"].tolist() == [1]
        else:
            with pytest.raises(error, match="classes that the training split has not: emu"):
                HuggingFaceSource(path, "test")


def test_ids_of_a_split_are_those_of_its_own_names(datasets, table, write):
    """Splits that were encoded apart have other ids for the same classes."""
    splits = {}
    for name, classes in (("train", ["cat", "dog", "emu"]), ("test", ["dog", "emu"])):
        kinds = {"label": datasets.ClassLabel(names=classes)}
        ids = list(range(len(classes)))
        splits[name] = table([pixels(i) for i in ids], kinds, label=ids)
    path = write(**splits)
    test = HuggingFaceSource(path, "test")
    assert test.labels["class"].tolist() == [1, 2]
    assert test.classes == {"class": ["cat", "dog", "emu"]}


@pytest.mark.parametrize("missing", [-1, None])
def test_a_missing_label_beside_a_splits_own_names(datasets, table, write, missing):
    train, test = (datasets.ClassLabel(names=names) for names in (["cat", "dog"], ["dog", "cat"]))
    images = [pixels(i) for i in range(2)]
    path = write(
        train=table(images, {"label": train}, label=[0, 1]),
        test=table(images, {"label": test}, label=[0, missing]),
    )
    with pytest.raises(ValueError, match="label -1 of image 1|labels must be integers or names"):
        HuggingFaceSource(path, "test")


def test_test_split_without_labels_gives_way_to_validation(datasets, table, tmp_path):
    kinds = {"label": datasets.ClassLabel(names=["a", "b"])}
    splits = {
        "train": table([pixels(0), pixels(1)], kinds, label=[0, 1]),
        "test": table([pixels(2)], kinds, label=[-1]),
    }
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "one"))
    with pytest.raises(SplitError, match="the images of test in .* have no labels"):
        HuggingFaceSource(tmp_path / "one", "test")
    splits["validation"] = table([pixels(3)], kinds, label=[1])
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "two"))
    check(HuggingFaceSource(tmp_path / "two", "test"), [pixels(3)])


def test_image_that_cannot_be_decoded_is_named_or_skipped(datasets, table, tmp_path):
    cells = [{"bytes": png(pixels(i)), "path": None} for i in range(3)]
    cells[1]["bytes"] = b"<html>404</html>"
    features = datasets.Features(
        {"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}}
    )
    made = datasets.Dataset.from_dict({"image": [*cells, None]}, features=features)
    datasets.DatasetDict(train=made).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(BadImageError, match="row 1 of .*saved: not an image file"):
        HuggingFaceSource(tmp_path / "saved", "train")
    source = HuggingFaceSource(tmp_path / "saved", "train", on_bad_image="skip")
    check(source, [pixels(0), pixels(2)])
    assert [name.split(" of ")[0] for name in source.skipped] == ["row 1", "row 3"]


def test_images_stored_by_their_paths(datasets, tmp_path):
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(png(pixels(i)))
    cells = {"photo": [str(tmp_path / f"{i}.png") for i in range(2)]}
    made = datasets.Dataset.from_dict(cells).cast_column("photo", datasets.Image())
    datasets.DatasetDict(train=made).save_to_disk(str(tmp_path / "saved"))
    check(HuggingFaceSource(tmp_path / "saved", "train"), [pixels(0), pixels(1)])


COLUMNS = {
    "has no column nope: it has image, label": {"image_column": "nope"},
    "column label of .* holds no encoded images": {"image_column": "label"},
    "has no column nope": {"label_column": "nope"},
}


@pytest.mark.parametrize("message", COLUMNS)
def test_columns_that_are_none(datasets, table, tmp_path, message):
    made = table([pixels(0)], label=[0])
    datasets.DatasetDict(train=made).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(ValueError, match=message) as caught:
        HuggingFaceSource(tmp_path / "saved", "train", **COLUMNS[message])
    assert "\n" not in str(caught.value)


def test_no_column_of_images_or_several(datasets, table, tmp_path):
    datasets.DatasetDict(train=datasets.Dataset.from_dict({"x": [1]})).save_to_disk(
        str(tmp_path / "none")
    )
    with pytest.raises(ValueError, match="no column of images: data.image_column names one of x"):
        HuggingFaceSource(tmp_path / "none", "train")
    made = table([pixels(0)]).add_column("other", [png(pixels(1))])
    datasets.DatasetDict(train=made).save_to_disk(str(tmp_path / "two"))
    with pytest.raises(ValueError, match="several columns of images, image, other"):
        HuggingFaceSource(tmp_path / "two", "train")
    check(HuggingFaceSource(tmp_path / "two", "train", image_column="other"), [pixels(1)])


def test_what_is_not_there(datasets, table, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty has no Parquet files, nor what save_to_di"):
        HuggingFaceSource(tmp_path / "empty", "train")
    for path in (tmp_path / "nowhere", "nowhere.parquet"):
        with pytest.raises(FileNotFoundError, match="nowhere.* does not exist$"):
            HuggingFaceSource(path, "train")
    for name in ("nobody/beans", "cifar100", "hf://datasets/nobody/beans"):
        with pytest.raises(
            FileNotFoundError, match=r"does not exist; nothing is fetched from .*k\("
        ):
            HuggingFaceSource(name, "train")
    datasets.DatasetDict(train=table([pixels(0)])).save_to_disk(str(tmp_path / "train"))
    with pytest.raises(FileNotFoundError, match="has no split test or validation"):
        HuggingFaceSource(tmp_path / "train", "test")
    datasets.DatasetDict(odd=table([pixels(0)])).save_to_disk(str(tmp_path / "odd"))
    with pytest.raises(FileNotFoundError, match="has no split train, but odd"):
        HuggingFaceSource(tmp_path / "odd", "train")


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_damaged_files_are_one_sentence(table, tmp_path, kind):
    made = table([pixels(i) for i in range(4)])
    path = tmp_path / ("saved" if kind == "folder" else "images.parquet")
    (made.save_to_disk if kind == "folder" else made.to_parquet)(str(path))
    file = next(path.glob("*.arrow")) if kind == "folder" else path
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"cannot read {path}"):
        HuggingFaceSource(path, "train")


def test_package_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'mast-ext\[huggingface\]'"):
        open_source("huggingface", "train", path=tmp_path)


def test_cells_may_name_files(datasets, tmp_path):
    """As long as these are regular: a pipe would be waited for."""
    names = [str(tmp_path / name) for name in ("a.png", "pipe")]
    (tmp_path / "a.png").write_bytes(png(pixels(1)))
    os.mkfifo(names[1])
    cells = [{"bytes": None, "path": name} for name in (*names, None)]
    kinds = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features({"image": kinds, "id": datasets.Value("int64")})
    for count, message in ((1, None), (2, "not a regular file"), (3, "the cell is empty")):
        file = tmp_path / f"{count}.parquet"
        rows = [cells[0], *cells[count - 1 : count]]
        table = datasets.Dataset.from_dict({"image": rows, "id": [0, 1]}, features=features)
        table.to_parquet(str(file))
        if message is None:
            check(HuggingFaceSource(file, "train"), [pixels(1)])
            continue
        with pytest.raises(BadImageError, match=message):
            for split in ("train", "test"):
                HuggingFaceSource(file, split)
